"""clsim.compare and clsim.results: reading run directories, which runs belong together, and what a table shows."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clsim
from clsim import cli, compare, provenance
from clsim.errors import RequestError

COST = {
    "seconds_training": 10.0,
    "seconds_evaluation": 2.0,
    "images_per_second": 150.0,
    "trainable_parameters": 12345,
    "stored_parameters": 20000,
    "backbone_parameters": 2900000,
    "memory_bytes": 3 * 2**20,
    "stored_bytes_per_experience": 1536.0,
    "peak_memory_bytes": 3 * 2**29,
}


def run(
    out: Path,
    strategy: str = "finetune",
    seed: int = 0,
    accuracy: float = 0.5,
    *,
    scenario: str = "toys",
    digest: str = "0a",
    forgetting: float | None = 0.25,
    finished: bool = True,
    parts: str = "[]",
    scenario_fields: str = "train_per_class = 'none'",
    code: str | None = None,
    tasks: float | None = None,
    **fields: Any,
) -> Path:
    """A run directory as a run leaves it."""
    directory = out / scenario / strategy.rpartition(":")[2] / f"vit_micro-s{seed}-{digest}"
    directory.mkdir(parents=True)
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"mask": "seen", "lr": 0.1, **fields}.items())
    (directory / "config.toml").write_text(
        f"backbone = 'vit_micro'\nseed = {seed}\nout = '{out}'\nprecision = 'fp32'\nwith = {parts}\n"
        f"[scenario]\nname = '{scenario}'\n{scenario_fields}\n[strategy]\nname = '{strategy}'\n{values}"
    )
    measures: dict[str, float | None] = {
        "average_accuracy": accuracy,
        "average_incremental_accuracy": 0.75,
        "forgetting": forgetting,
        "backward_transfer": -0.125,
        "learning_accuracy": 0.875,
    }
    summary = {
        "scenario": scenario,
        "strategy": strategy,
        "backbone": "vit_micro",
        "seed": seed,
        "config_hash": digest,
        "protocol": "class",
        "metrics": measures,
        "cost": COST,
        "seconds": 12.0,
    }
    if tasks is not None:
        measures["task_accuracy"] = tasks
    summary["code"] = provenance.code_digest() if code is None else code
    matrix = {"correct": [[5]], "total": [10], "experiences": ["all"], "classes": [["a"]]}
    if finished:
        (directory / "matrix.json").write_text(json.dumps(matrix))
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_seeds_go_together_with_mean_and_interval(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        run(tmp_path, seed=seed, accuracy=accuracy)
    (row,) = rows(compare.report([tmp_path], "csv"))
    assert (row["scenario"], row["strategy"], row["backbone"], row["seeds"]) == ("toys", "finetune", "vit_micro", "3")
    assert float(row["average_accuracy_percent"]) == pytest.approx(60)
    # Student's t for 2 degrees of freedom is 4.30265; the standard error is 10 / sqrt(3)
    assert float(row["average_accuracy_interval"]) == pytest.approx(4.30265 * 10 / 3**0.5, abs=1e-3)
    assert float(row["backward_transfer_percent"]) == -12.5
    assert (row["trainable_parameters"], row["seconds"], row["memory_bytes"]) == ("12345.0", "12.0", "3145728.0")
    assert float(row["trainable_percent"]) == pytest.approx(100 * 12345 / 2.9e6)
    assert row["stored_bytes_per_experience"] == "1536.0"
    table = compare.report([tmp_path])
    assert "0.426" in table and "1.5 KiB" in table
    assert "60.0 ± 24.8" in table and "12,345" in table and "150" in table and "3.0 MiB" in table and "1.5 GiB" in table


def test_costs_that_a_run_does_not_have_are_dashes(tmp_path: Path) -> None:
    directory = run(tmp_path)
    summary = json.loads((directory / "summary.json").read_text())
    summary["cost"] = {"trainable_parameters": 7}
    (directory / "summary.json").write_text(json.dumps(summary))
    assert compare.report([tmp_path]).splitlines()[-1].split()[-8:] == ["7", "-", "-", "-", "12.0", "-", "-", "-"]


def test_picture_and_tensorboard(tmp_path: Path, capsys: Any) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        run(tmp_path / "runs", seed=seed, accuracy=accuracy)
    run(tmp_path / "runs", scenario="other")
    file = tmp_path / "runs" / "picture.png"
    for _ in range(2):
        assert cli.main(["compare", str(tmp_path / "runs"), "--plot", str(file)]) == 0
    assert "60.0" in capsys.readouterr().out
    assert file.read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "runs" / "picture").iterdir()
    board = EventAccumulator(str(events.parent))
    board.Reload()
    assert board.Tags()["images"] == ["accuracy against trainable parameters"]
    assert cli.main(["compare", str(tmp_path / "runs"), "--plot", "picture.jpg"]) == 2
    broken = run(tmp_path / "more", finished=False)
    assert cli.main(["compare", str(broken), "--plot", str(file)]) == 2
    assert "no finished run to draw" in capsys.readouterr().err


def test_one_seed_has_no_interval_and_null_is_a_dash(tmp_path: Path) -> None:
    run(tmp_path, strategy="joint", forgetting=None)
    (row,) = rows(compare.report([tmp_path], "csv"))
    assert (row["average_accuracy_percent"], row["average_accuracy_interval"]) == ("50.0", "")
    assert (row["forgetting_percent"], row["forgetting_interval"]) == ("", "")
    line = compare.report([tmp_path]).splitlines()[-1].split()
    assert line[:6] == ["joint", "vit_micro", "1", "50.0", "-", "75.0"]


def test_settings_that_differ_are_shown_and_keep_groups_apart(tmp_path: Path) -> None:
    run(tmp_path, accuracy=0.3)
    run(tmp_path, accuracy=0.4, digest="0b", mask="current")
    run(tmp_path, accuracy=0.6, digest="0c", parts="['er:500']")
    run(tmp_path, strategy="l2p", accuracy=0.5)
    names = [row["strategy"] for row in rows(compare.report([tmp_path], "csv"))]
    # the best first; nothing is said of lr, which is the same everywhere
    assert names == [
        "finetune mask=seen with=er:500",
        "l2p",
        "finetune mask=current with=none",
        "finetune mask=seen with=none",
    ]


def test_scenarios_have_tables_of_their_own(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, digest="0b", scenario_fields="train_per_class = 50")
    run(tmp_path, scenario="other", strategy="path/to/mine.py:Mine")
    text = compare.report([tmp_path])
    titles = [block.splitlines()[0] for block in text.split("\n\n")]
    assert titles == ["other", "toys train_per_class=50", "toys train_per_class=none"]
    assert text.count("finetune") == 2
    assert "\nmine " in text
    markdown = compare.report([tmp_path], "md").splitlines()
    assert markdown[0].startswith("| scenario | strategy | backbone | seeds | average accuracy % |")
    assert markdown[1].startswith("| --- | --- | --- | ---: |")
    assert [line.split(" | ")[0] for line in markdown[2:]] == [f"| {title}" for title in titles]


def test_settings_are_compared_within_a_table_only(tmp_path: Path) -> None:
    run(tmp_path, "l2p", digest="01", lr=0.1)
    run(tmp_path, "l2p", digest="02", lr=0.2, scenario_fields="train_per_class = 50")
    labels = [(each.scenario, each.strategy) for each in compare.group(compare.find([tmp_path])[0])]
    assert sorted(labels) == [("toys train_per_class=50", "l2p"), ("toys train_per_class=none", "l2p")]


def test_a_seed_that_occurs_twice_is_never_averaged(tmp_path: Path) -> None:
    run(tmp_path, accuracy=0.4, digest="0a")
    run(tmp_path, accuracy=0.6, digest="0b")
    found = rows(compare.report([tmp_path], "csv"))
    assert [(row["strategy"], row["seeds"]) for row in found] == [("finetune #0b", "1"), ("finetune #0a", "1")]


def test_fields_that_an_earlier_version_did_not_have_are_not_shown(tmp_path: Path) -> None:
    run(tmp_path, accuracy=0.4, digest="0a", lr=0.5)
    run(tmp_path, accuracy=0.6, digest="0b", lr=0.5, label_smoothing=0.0)
    run(tmp_path, accuracy=0.5, digest="0c", lr=0.25, scenario_fields="train_per_class = 'none'\nshots = 4")
    labels = [(each.scenario, each.strategy) for each in compare.group(compare.find([tmp_path])[0])]
    assert labels == [("toys", "finetune lr=0.5 #0b"), ("toys", "finetune lr=0.25"), ("toys", "finetune lr=0.5 #0a")]


def test_unfinished_runs_are_mentioned_and_the_same_run_counts_once(tmp_path: Path) -> None:
    done = run(tmp_path)
    broken = run(tmp_path, seed=1, finished=False)
    text = compare.report([tmp_path, done, tmp_path / "toys"])
    assert text.count("finetune") == 2  # one row, and the directory of the other
    assert text.endswith(f"not finished: {broken}")
    assert compare.report([broken]) == f"not finished: {broken}"
    assert compare.report([broken], "md") == f"not finished: {broken}"
    assert compare.report([broken], "csv") == ""


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no directory .*nowhere"):
        compare.report([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match="no run in or below"):
        compare.report([tmp_path])
    done = run(tmp_path)
    (done / "summary.json").write_text("{")
    with pytest.raises(RequestError, match=r"summary\.json is missing or broken: JSONDecodeError"):
        compare.report([done])
    shutil.rmtree(done)
    done = run(tmp_path)
    (done / "config.toml").write_text("seed = 0\n")
    with pytest.raises(RequestError, match=r"config\.toml was not written by a run: it has no scenario, strategy"):
        compare.report([done])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.toml", None, "config.toml is missing or broken: FileNotFoundError"),
        ("config.toml", "seed =", "config.toml is missing or broken: TOMLDecodeError"),
        ("matrix.json", None, "matrix.json is missing or broken: FileNotFoundError"),
        ("matrix.json", '{"correct": [], "total": []}', "matrix.json was not written by a run: it has no experiences"),
        ("summary.json", "[]", "summary.json was not written by a run: it has no scenario, strategy, backbone"),
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    done = run(tmp_path)
    if content is None:
        (done / file).unlink()
    else:
        (done / file).write_text(content)
    for read in (lambda: clsim.load(done), lambda: compare.report([done])):
        with pytest.raises(RequestError, match=re.escape(str(done / message))):
            read()


def test_what_a_loaded_run_offers(tmp_path: Path) -> None:
    done = run(tmp_path, lr=0.5, scenario_fields="shots = 4", parts="['er:500']")
    (done / "events.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5}\n'
        '{"event": "log", "name": "usage", "value": [1, 2]}\n'
        '{"event": "evaluation", "correct": [3], "step": 1}\n'
        '{"event": "step", "step": 2, "loss": null}\n'
        '{"event": "evaluation", "correct": [4], "step": 2, "task_correct": [6]}\n'
    )
    loaded = clsim.load(done)
    assert loaded.scenario_settings == {"shots": 4}
    assert loaded.settings == {"mask": "seen", "lr": 0.5, "precision": "fp32", "with": ["er:500"]}
    assert loaded.metrics["average_accuracy"] == loaded.figures["average_accuracy"] == 0.5
    assert (loaded.figures["seconds"], loaded.figures["memory_bytes"]) == (12.0, 3 * 2**20)
    assert {kind: list(fields) for kind, fields in loaded.events.items()} == {
        "step": ["step", "loss"],
        "log": ["name", "value"],
        "evaluation": ["correct", "step", "task_correct"],
    }
    assert loaded.events["step"]["loss"].tolist() == [0.5, None]
    assert loaded.events["log"]["value"].tolist() == [[1, 2]]
    # as long as the other columns: the first evaluation detected no tasks
    assert loaded.events["evaluation"]["task_correct"].tolist() == [None, [6]]


def test_images_and_task_go_to_the_runs_predictor(tmp_path: Path) -> None:
    loaded = clsim.load(run(tmp_path))
    fake = SimpleNamespace(
        predict=lambda images, task, size: [len(images), task], scores=lambda images, task, size: [[0.5, task]]
    )
    loaded.__dict__["_predictor"] = fake  # as the cached property keeps it
    assert loaded.predict([7, 7, 7], 2).tolist() == [3, 2]
    assert loaded.scores([7], task=3).tolist() == [[0.5, 3.0]]


def test_runs_made_by_other_code_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = [run(tmp_path, seed=seed) for seed in range(7)]
    fresh = run(tmp_path, strategy="l2p", accuracy=0.1)
    assert clsim.load(done[0]).code_note is None
    assert "other code" not in compare.report([tmp_path]) + compare.report([tmp_path], "md")
    assert [row["other_code"] for row in rows(compare.report([tmp_path], "csv"))] == ["false", "false"]
    plain = compare.report([tmp_path], "md")
    made = provenance.code_digest()
    monkeypatch.setattr(provenance, "code_digest", lambda: "fedcba987654")
    summary = json.loads((fresh / "summary.json").read_text())
    (fresh / "summary.json").write_text(json.dumps(summary | {"code": "fedcba987654"}))
    note = f"made by other code of clsim ({made}, now fedcba987654): repeat with --fresh to run it again"
    assert clsim.load(done[0]).code_note == note
    named = ", ".join(map(str, done[:5]))
    line = f"made by other code of clsim (repeat with --fresh to run them again): {named} and 2 more"
    assert compare.report([tmp_path]).endswith(f"\n\n{line}")
    assert compare.report([tmp_path], "md") == f"{plain}\n\n{line}"
    assert [row["other_code"] for row in rows(compare.report([tmp_path], "csv"))] == ["true", "false"]


def test_a_run_without_a_digest_was_made_by_an_earlier_version(tmp_path: Path) -> None:
    done = run(tmp_path)
    summary = json.loads((done / "summary.json").read_text())
    del summary["code"]
    (done / "summary.json").write_text(json.dumps(summary))
    note = "made by an earlier version of clsim: repeat with --fresh to run it again"
    assert clsim.load(done).code_note == note
    assert compare.report([done]).endswith(f"(repeat with --fresh to run them again): {done}")
    assert rows(compare.report([done], "csv"))[0]["other_code"] == "true"


def test_detected_tasks_are_a_column_only_where_a_method_detects_them(tmp_path: Path) -> None:
    run(tmp_path)
    assert "task" not in compare.report([tmp_path]) + compare.report([tmp_path], "csv")
    run(tmp_path, strategy="s_prompts", accuracy=0.4, tasks=0.625)
    run(tmp_path, scenario="other")
    found = {row["strategy"]: row["task_accuracy_percent"] for row in rows(compare.report([tmp_path / "toys"], "csv"))}
    assert found == {"finetune": "", "s_prompts": "62.5"}
    other, toys = compare.report([tmp_path]).split("\n\n")
    assert "task" not in other and "62.5" in toys.splitlines()[-1]


def test_options_that_results_do_not_depend_on_keep_no_runs_apart(tmp_path: Path) -> None:
    for seed, (minutes, device) in enumerate((("10.0", "cuda:0"), ("1.0", "cuda:1"))):
        config = run(tmp_path, seed=seed) / "config.toml"
        config.write_text(f"checkpoint_minutes = {minutes}\ndevice = '{device}'\n{config.read_text()}")
    assert [row["seeds"] for row in rows(compare.report([tmp_path], "csv"))] == ["2"]


def test_finite_test_sets_have_an_interval_of_their_own(tmp_path: Path) -> None:
    for seed, correct in enumerate(([50, 30], [60, 20])):  # 80 of 200 both times: 1.96 sqrt(0.4 * 0.6 / 200) = 6.79 %
        directory = run(tmp_path, seed=seed, accuracy=0.4)
        matrix = {"correct": [[70, None], correct], "total": [100, 100], "experiences": ["a", "b"], "classes": []}
        (directory / "matrix.json").write_text(json.dumps(matrix))
    (row,) = rows(compare.report([tmp_path], "csv"))
    assert float(row["test_set_interval"]) == pytest.approx(6.7896, abs=1e-4)
    for style in ("table", "md"):
        text = compare.report([tmp_path], style)
        assert "binomial" in text and "6.8" in text


def test_a_pair_is_judged_by_its_target_images_alone(tmp_path: Path) -> None:
    directory = run(tmp_path)
    summary = json.loads((directory / "summary.json").read_text())
    summary["metrics"] = {"target_accuracy": 0.5, "target_test_accuracy": 0.4, "source_accuracy": 0.9}
    (directory / "summary.json").write_text(json.dumps(summary))
    matrix = {"correct": [[50, 4, 9]], "total": [100, 10, 10], "experiences": ["t", "tt", "s"], "classes": []}
    (directory / "matrix.json").write_text(json.dumps(matrix))
    (row,) = rows(compare.report([tmp_path], "csv"))
    assert float(row["test_set_interval"]) == pytest.approx(9.8)  # 1.96 sqrt(0.25 / 100)


def test_forgetting_since_learned_is_a_column_only_where_it_differs(tmp_path: Path) -> None:
    run(tmp_path, forgetting=0.25)
    assert "since" not in compare.report([tmp_path])
    directory = run(tmp_path, strategy="coop", forgetting=0.5)
    summary = json.loads((directory / "summary.json").read_text())
    summary["metrics"]["forgetting_since_learned"] = 0.125
    (directory / "summary.json").write_text(json.dumps(summary))
    found = {row["strategy"]: row for row in rows(compare.report([tmp_path], "csv"))}
    assert found["coop"]["forgetting_percent"] == "50.0"
    assert found["coop"]["forgetting_since_learned_percent"] == "12.5"
    assert found["finetune"]["forgetting_since_learned_percent"] == "25.0", "equal to forgetting there"


def test_seeds_over_different_class_orders_go_together(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, seed=seed, accuracy=0.4 + 0.1 * seed, scenario_fields="order_seed = 'seed'")
    run(tmp_path, digest="0b", scenario_fields="order_seed = 0")
    found = {row["scenario"]: row["seeds"] for row in rows(compare.report([tmp_path], "csv"))}
    assert found == {"toys order_seed=seed": "2", "toys order_seed=0": "1"}


def test_csv_and_json_have_every_metric_and_long_ones_every_run(tmp_path: Path, capsys: Any) -> None:
    for seed, accuracy in enumerate((0.5, 0.6)):
        directory = run(tmp_path, seed=seed, accuracy=accuracy)
        summary = json.loads((directory / "summary.json").read_text())
        summary["metrics"] |= {"sample_accuracy": accuracy / 2, "forward_transfer": None}
        (directory / "summary.json").write_text(json.dumps(summary))
    assert cli.main(["compare", "--format", "json", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sample_accuracy_percent"], row["seeds"], row["other_code"]) == (27.5, 2, False)
    assert "forward_transfer_percent" not in row, "no run has it"
    assert cli.main(["compare", "--format", "json", "--long", str(tmp_path)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["seed"], first["average_accuracy_percent"], first["sample_accuracy_percent"]) == (0, 50.0, 25.0)
    assert (second["seed"], second["average_accuracy_percent"], second["directory"]) == (1, 60.0, str(directory))
    assert cli.main(["compare", "--format", "csv", "--long", str(tmp_path)]) == 0
    table = rows(capsys.readouterr().out)
    assert [each["seed"] for each in table] == ["0", "1"] and list(table[0]) == list(first)
    assert cli.main(["compare", "--long", str(tmp_path)]) == 2
    assert "--long is for --format csv" in capsys.readouterr().err
