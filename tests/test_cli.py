"""clsim.cli: arguments, exit statuses, what is printed, and what is not imported."""

import json
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clsim import cli, listing, plugins
from clsim.backbones import registry
from clsim.config import RunConfig
from clsim.engines import many
from clsim.errors import RequestError, RunFailed
from clsim.options import OPTIONS, flag
from clsim.version import VERSION


def clsim(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m clsim ...` in a process of its own."""
    command = [sys.executable, "-m", "clsim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner that only keeps what it is given; `outcome` is raised where it is an exception."""
    fake: Any = types.ModuleType("clsim.runner")
    fake.calls, fake.outcome = [], []
    assert many.run_all  # imported before the runner is replaced, which it needs

    def run_all(configs: Sequence[RunConfig], **how: bool) -> Any:
        fake.calls.append((configs, how))
        if isinstance(fake.outcome, BaseException):
            raise fake.outcome
        return fake.outcome

    fake.run_all = run_all
    monkeypatch.setitem(sys.modules, "clsim.runner", fake)
    monkeypatch.setattr("clsim.runner", fake, raising=False)
    monkeypatch.delenv("CLSIM_DATA_DIR", raising=False)
    return fake


# arguments


def test_fields_may_stand_anywhere(runner: Any, tmp_path: Path) -> None:
    arguments = ["top_k=3", "--seed", "0,1", "scenario.train_per_class=5", "--data-dir", "a=b", "--quiet", "lr=-0"]
    assert cli.main(["run", *arguments, "--with=er:5", "--out", str(tmp_path), "pull=0.1"]) == 0
    ((configs, how),) = runner.calls
    assert how == {"fresh": False, "quiet": True, "dry_run": False}
    assert [each.seed for each in configs] == [0, 1]
    first = configs[0]
    assert (first.strategy_fields["top_k"], first.strategy_fields["pull"], first.strategy_fields["lr"]) == (3, 0.1, 0.0)
    assert first.scenario_fields["train_per_class"] == 5
    assert (first.data_dir, first.parts, first.out) == (Path("a=b"), ("er:5",), tmp_path)


def test_options_reach_the_plan(runner: Any) -> None:
    options = ["--scenario", "split_digits", "--strategy", "finetune,l2p", "--backbone", "vit_nano", "--epochs", "2"]
    options += ["--batch-size", "8", "--device", "cpu", "--precision", "bf16", "--threads", "1", "--preset", "paper"]
    assert cli.main(["run", *options, "--fresh", "--dry-run"]) == 0
    ((configs, how),) = runner.calls
    assert how == {"fresh": True, "quiet": False, "dry_run": True}
    assert [each.strategy for each in configs] == ["finetune", "l2p"]
    for each in configs:
        assert (each.backbone, each.device, each.precision, each.threads) == ("vit_nano", "cpu", "bf16", 1)
        assert (each.strategy_fields["epochs"], each.strategy_fields["batch_size"]) == (2, 8)
    assert configs[1].preset == "paper"


def test_parts_of_a_repeated_option_are_all_kept(runner: Any) -> None:
    assert cli.main(["run", "--strategy", "l2p", "--with", "er:30", "--with=ewc:10"]) == 0
    (((one,), _),) = runner.calls
    assert one.parts == ("er:30", "ewc:10")


def test_fields_may_be_written_as_options(runner: Any) -> None:
    arguments = ["--lr", "0.1", "--top-k=3", "pull=0.2", "--seed", "0-1", "--scenario.train-per-class", "5", "--quiet"]
    assert cli.main(["run", *arguments]) == 0
    ((configs, how),) = runner.calls
    assert [each.seed for each in configs] == [0, 1] and how["quiet"]
    assert [configs[0].strategy_fields[name] for name in ("lr", "top_k", "pull")] == [0.1, 3, 0.2]
    assert configs[0].scenario_fields["train_per_class"] == 5


def test_new_options_reach_the_plan(runner: Any) -> None:
    given = [
        "--checkpoint-minutes",
        "2.5",
        "--eval-every",
        "100",
        "--image-size",
        "224",
        "--with",
        "der,alpha=1,size=7",
    ]
    assert cli.main(["run", *given]) == 0
    (((only,), _),) = runner.calls
    assert (only.checkpoint_minutes, only.eval_every, only.image_size) == (2.5, 100, 224)
    assert only.parts == ("der:1:0.5:7",)


def test_a_file_holds_options_too(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("strategy = 'finetune'\nseed = 4\n")
    assert cli.main(["run", "--config", str(tmp_path / "c.toml"), "--seed", "5"]) == 0
    ((configs, _),) = runner.calls
    assert [(each.strategy, each.seed) for each in configs] == [("finetune", 5)]


def test_several_runs_end_with_one_table(runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen = []
    monkeypatch.setattr("clsim.compare.report", lambda paths: seen.append(paths) or "the table")
    runner.outcome = [types.SimpleNamespace(directory=Path("a"), config={})]
    assert cli.main(["run"]) == 0
    assert (seen, capsys.readouterr().out) == ([], "")
    runner.outcome.append(types.SimpleNamespace(directory=Path("b"), config={}))
    assert cli.main(["run"]) == 0
    assert (seen, capsys.readouterr().out) == ([[Path("a"), Path("b")]], "the table\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "topk=3"], "l2p has no field 'topk' (did you mean top_k?)"),
        (
            ["run", "--strategy", "source_only", "trade_off=0.5"],
            "source_only has no field 'trade_off' (cdan, dann, mcc have one); own fields: tune; "
            "all: `clsim show source_only`",
        ),
        (["run", "--strategy", "ncm", "--with", "er:"], "error: --with 'er:': write er:SIZE or er,size=VALUE"),
        (["run", "--with", "der:1::5"], "error: --with der:1::5: write der:ALPHA:BETA:SIZE or der,alpha=VALUE"),
        (["show", "nothing"], "domainnet, dualprompt, er, er_per_class, ewc, fecam, finetune,"),
        (["show", "er_per_clas"], "(did you mean 'er_per_class'?)"),
        (["run", "train_per_class=3"], "write scenario.train_per_class=3"),
        (["run", "--sed", "0"], "no option '--sed' (did you mean '--seed'?)"),
        (["run", "--sed=0"], "no option '--sed' (did you mean '--seed'?)"),
        (["run", "--seed"], "argument --seed: expected one argument"),
        (["run", "--topk", "3"], "no option '--topk' (did you mean '--top-k'?)"),
        (["run", "--lr"], "l2p: lr must be a number, not ''"),
        (["run", "--lr", "--quiet"], "l2p: lr must be a number, not ''"),
        (["run", "--lr", "--seed", "0"], "l2p: lr must be a number, not ''"),
        (["run", "--train-per-class", "3"], "write scenario.train_per_class=3"),
        (["run", "-x"], "clsim run does not take '-x'"),
        (["runn"], "no command 'runn' (did you mean 'run'?); there are: cache, compare"),
        (["--sed"], "unrecognized arguments: --sed"),
        (["show"], "the following arguments are required: NAME"),
        (["show", "l2pp"], "no strategy, scenario, part or backbone 'l2pp' (did you mean 'l2p'?)"),
        (["list", "strategie"], "no section 'strategie' (did you mean 'strategies'?)"),
        (["list", "strategies", "more"], "clsim list does not take 'more'"),
        (["compare", "x", "--format", "html"], "argument --format: invalid choice: 'html'"),
        (["compare", "nowhere"], "no directory nowhere"),
        (["pretrain", "vit_micro", "--threads", "0"], "threads must be at least 1, not 0"),
        (["pretrain", "vit_micro", "epochs"], "'epochs' is neither an option nor a field"),
    ],
)
def test_mistakes_are_one_line_and_status_2(runner: Any, capsys: Any, arguments: list[str], message: str) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clsim: error: ") and message in err and err.count("\n") == 1
    assert runner.calls == []


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        (RunFailed("the loss is nan\nat step 3"), 1, "clsim: failed: the loss is nan at step 3\n"),
        (OSError(28, "No space left on device"), 1, "clsim: failed: [Errno 28] No space left on device\n"),
        (RequestError("no data"), 2, "clsim: error: no data\n"),
        (KeyboardInterrupt(), 130, "clsim: interrupted; repeat the same command to resume\n"),
    ],
)
def test_outcomes_and_statuses(runner: Any, capsys: Any, outcome: BaseException, status: int, message: str) -> None:
    runner.outcome = outcome
    assert cli.main(["run"]) == status
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(runner: Any) -> None:
    runner.outcome = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_pretrain_hands_on_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("clsim.pretrain.main", lambda *given, **named: seen.append((given, named)), raising=False)
    monkeypatch.setenv("CLSIM_DATA_DIR", "/data")
    assert cli.main(["pretrain", "vit_micro", "epochs=2", "--out", "o", "lr=0.1"]) == 0
    assert cli.main(["pretrain", "vit_micro", "--data-dir", "d"]) == 0
    assert seen == [
        (("vit_micro",), {"data_dir": Path("/data"), "out": Path("o"), "fields": {"epochs": "2", "lr": "0.1"}}),
        (("vit_micro",), {"data_dir": Path("d"), "out": Path("runs"), "fields": {}}),
    ]


def test_compare_prints_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("clsim.compare.report", lambda paths, *how: f"{[str(path) for path in paths]} {how}")
    assert cli.main(["compare", "--format", "md", "a", "b"]) == 0
    assert capsys.readouterr().out == "['a', 'b'] ('md', False)\n"


# what is printed


def test_list_is_plain_when_piped(capsys: Any) -> None:
    everything = [
        *(name for kind in ("scenarios", "strategies", "parts") for name in plugins.names(kind)),
        *registry.BUNDLED,
    ]
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out.splitlines() == everything
    assert cli.main(["list", "strategies"]) == 0
    assert capsys.readouterr().out.splitlines() == plugins.names("strategies")
    assert cli.main(["list", "backbones"]) == 0
    assert capsys.readouterr().out.splitlines() == list(registry.BUNDLED)


def test_list_has_sections_and_summaries_on_a_terminal() -> None:
    lines = listing.names().splitlines()
    assert [line for line in lines if line in listing.SECTIONS] == list(listing.SECTIONS)
    summary = plugins.describe("strategies", "l2p").summary
    assert any(line.split(maxsplit=1) == ["l2p", summary] for line in lines if line.startswith("  "))
    assert any("vit_base_patch16_224.augreg_in21k" in line for line in lines)


def test_one_broken_plugin_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "bad.py").write_text("def broken(:\n")
    (folder / "good.py").write_text('from clsim import Strategy\n\n\nclass Good(Strategy):\n    """Good."""\n')
    monkeypatch.setattr("clsim.__path__", [str(tmp_path)])
    lines = listing.names("strategies").splitlines()
    assert lines[1].startswith("  bad   (") and "line 1" in lines[1]
    assert lines[2] == "  good  Good."


def test_show_says_what_a_file_says(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "toy.py"
    file.write_text(
        "from typing import ClassVar, Literal\nfrom dataclasses import dataclass\nfrom clsim import Strategy\n\n\n"
        '@dataclass\nclass Toy(Strategy):\n    """A toy."""\n\n'
        '    kind: Literal["a", "b"] | None = "a"  # which\n    on: bool = True  # whether\n\n'
        '    presets: ClassVar = {"first": {}, "second": {"kind": None, "on": False}}\n'
    )
    assert cli.main(["show", f"{file}:Toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{file}:Toy (strategy)", "", "A toy."]
    assert f"file: {file}" in lines
    assert "  kind  a|b|none  a     which" in lines
    assert "  on    bool      true  whether" in lines
    assert "  first   (the defaults)" in lines
    assert "  second  kind=none on=false" in lines
    assert any(line.split()[:3] == ["epochs", "int", "5"] for line in lines)


def test_show_and_list_parts(capsys: Any) -> None:
    assert cli.main(["list", "parts"]) == 0
    assert capsys.readouterr().out.splitlines() == plugins.names("parts")
    assert cli.main(["show", "der"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "der (part)" and "--with der:ALPHA:BETA:SIZE" in lines
    assert "  size   int    500  images kept" in lines
    assert cli.main(["show", "er"]) == 0  # the strategy and the part
    text = capsys.readouterr().out
    assert "er (strategy)\n" in text and "er (part)\n" in text
    assert "the same as: finetune --with er,size=memory" in text
    assert "--with er_per_class:SIZE (per_class=true)" in text


def test_show_scenario_and_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert cli.main(["show", "split_digits"]) == 0
    assert "  scenario.train_per_class  int|none   none  training images of each class" in capsys.readouterr().out
    assert cli.main(["show", "vit_nano"]) == 0
    assert capsys.readouterr().out == f"vit_nano (backbone)\n\n{registry.describe('vit_nano')}\n"
    (tmp_path / "weights").mkdir()
    notes = {"recipe": {"epochs": 10, "betas": [0.9, 0.98]}, "validation_accuracy": 0.5}
    (tmp_path / "weights" / "vit_nano.json").write_text(json.dumps(notes))
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert cli.main(["show", "vit_nano"]) == 0
    expected = ["recipe:", "  epochs: 10", "  betas: 0.9, 0.98", "validation accuracy: 0.5"]
    assert capsys.readouterr().out.splitlines()[-4:] == expected


def test_cache_is_shown_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path))
    assert cli.main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: empty\n"
    for name, count in (("tables/one/images.npy", 1536), ("features/two/features", 100), ("mine.txt", 5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(count))
    assert cli.main(["cache"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{tmp_path}: 1.6 KiB in 2 entries", "  tables/one    1.5 KiB", "  features/two  100 B"]
    assert cli.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"removed from {tmp_path}:", *shown[1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "mine.txt", "tables"]
    assert list((tmp_path / "tables").iterdir()) == []
    assert cli.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: already empty\n"


def test_help_and_version(capsys: Any) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"clsim {VERSION}\n"
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag(name) in text for name in OPTIONS)
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        assert "COMMAND" in capsys.readouterr().out


# whole processes


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "l2p"], ["show", "vit_micro"], ["cache"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom clsim.cli import main\nstatus = main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'timm') if name in sys.modules], status, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "[] 0\n"
    assert done.stdout


def test_statuses_of_the_process() -> None:
    assert clsim("list", "strategies").returncode == 0
    done = clsim("show", "nothing_like_it")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clsim: error: no strategy, scenario, part or backbone 'nothing_like_it'")
    done = clsim("run", "--strategy", "finetun")
    assert done.returncode == 2
    assert done.stderr.startswith("clsim: error: no strategy 'finetun' (did you mean 'finetune'?)")
    assert done.stderr.count("\n") == 1


def test_closed_stdout_exits_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clsim", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()  # before anything is written: the interpreter is still starting
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("momentum=5", "l2p: momentum must be at least 0 and below 1, not 5.0"),
        ("momentum=-1", "l2p: momentum must be at least 0 and below 1, not -1.0"),
        ("--strategy er memory=0", "er: memory must be at least 1, not 0"),
        ("--strategy er memory=-1", "er: memory must be at least 1, not -1"),
        ("--strategy mcc trade_off=-1", "mcc: trade_off must be at least 0, not -1.0"),
        ("pull=-1", "l2p: pull must be at least 0, not -1.0"),
        ("--strategy dualprompt pull=-1", "dualprompt: pull must be at least 0, not -1.0"),
        (f"--epochs {10**30}", "l2p: epochs must be a whole number, not '1000000000000000000000000000000'"),
        ("--epochs 10000000", "l2p: epochs must be at most 1000000, not 10000000"),
        ("lr_base=1e38", "l2p: lr_base must be at most 1e+30, not 1e+38"),
        ("--strategy linear lr=1e39", "linear: lr must be at most 1e+30, not 1e+39"),
        (f"--epochs {'9' * 5000}", "l2p: epochs must be a whole number, not '9999"),
        (f"--with er:{10**30}", "size must be a whole number"),
        ("--with er:0", "a rehearsal memory holds at least 1 image, not 0"),
        (".lr=1", ".lr=1 names no field: write x=1, STRATEGY.x=1 or scenario.x=1"),
        ("=1", "=1 names no field"),
        ("l2p.=1", "l2p.=1 names no field"),
        ("--backbone=", "backbone must be a name, not an empty text"),
        ("--scenario=", "scenario must be a name, not an empty text"),
        ("--out=", "out must be a path, not ''"),
        ("--data-dir=", "data_dir must be a path, not ''"),
        ("--preset nope", "no preset of l2p 'nope'"),
        ("--threads 100000", "threads must be at most 1024, not 100000"),
        (f"--threads {10**20}", "threads must be a whole number or none"),
        ("l2p", "'l2p' is a strategy: write --strategy l2p"),
        ("split_glyphs", "'split_glyphs' is a scenario: write --scenario split_glyphs"),
        ("ewc", "'ewc' is a part: write --with ewc"),
        ("vit_nano", "'vit_nano' is a backbone: write --backbone vit_nano"),
        ("epochs=1 --epochs 2", "epochs is given twice: --epochs 2 and epochs=1"),
        ("lr=1 --lr 2", "lr is given twice: lr=1 and --lr=2"),
        ("--seed 0-1000000000", "0-1000000000 is more than 10000 seeds"),
        ("--seed 4..0", "seed must be one or more whole numbers"),
    ],
)
def test_values_without_sense_are_refused_in_one_line(
    request_: str, message: str, runner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *request_.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 600
    assert not runner.calls


def test_the_same_value_may_be_given_twice(runner: Any) -> None:
    assert cli.main(["run", "epochs=2", "--epochs", "2", "lr=0.5", "--lr", "0.5"]) == 0


@pytest.mark.parametrize("written", ["0-4", "0..4", "0,1..3,4"])
def test_a_range_of_seeds(written: str, runner: Any) -> None:
    assert cli.main(["run", "--seed", written]) == 0
    assert [each.seed for each in runner.calls[0][0]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [("lr = " + "[" * 5000 + "]" * 5000, "too many levels"), ("# x\n" * 400_000, "is larger than 1 MB")],
)
def test_a_configuration_of_absurd_size_is_refused(
    text: str, message: str, runner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.toml").write_text(text)
    assert cli.main(["run", "--config", str(tmp_path / "large.toml")]) == 2
    assert message in capsys.readouterr().err


def test_far_names_are_not_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "quux"]) == 2
    assert "did you mean" not in capsys.readouterr().err


INTERRUPTED = """
import atexit, sys, time
from clsim import cli
atexit.register(time.sleep, 60)  # an interpreter with many modules takes its time to end
def interrupted(argv):
    print("so far")
    exec("raise KeyboardInterrupt")  # in compiled text, e.g. of a dataclass, it would change the exit status
cli._dispatch = interrupted
sys.exit(cli.main())
"""


def test_an_interrupted_program_ends_at_once_with_its_own_status() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (130, "so far\n")
    assert done.stderr == "clsim: interrupted; repeat the same command to resume\n"


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "another", "folder"])
def test_a_broken_note_about_finished_runs_is_found_and_removed(tmp_path, monkeypatch, capsys, damage) -> None:
    from clsim.listing import NOTES
    from clsim.sealed import digest, packed

    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path))
    note = tmp_path / NOTES / f"{digest(b'a request')}.z"
    note.parent.mkdir()
    note.write_bytes(packed({"request": "a request"}))
    assert cli.main(["cache", "--verify"]) == 0 and capsys.readouterr().out.endswith(f"{note.name}: whole\n")
    data = note.read_bytes()
    if damage == "folder":
        note.unlink()
        note.mkdir()
    else:
        others = {"changed": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:9], "longer": data + b"garbage"}
        others["another"] = packed({"request": "b"})
        note.write_bytes(others[damage])
    assert cli.main(["cache", "--verify"]) == 1
    found = capsys.readouterr().out
    assert f"{note.name}: BROKEN: " in found and found.endswith("; removed\n") and not note.exists()


def test_the_cache_is_verified_cleared_and_cleared_again(tmp_path, monkeypatch, capsys, make_table) -> None:
    from clsim.backbones.features import FeatureBank
    from clsim.backbones.load import load_backbone

    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path))
    tower, cpu = load_backbone("vit_nano").image, torch.device("cpu")
    bank = FeatureBank(tower, make_table(), cpu, tmp_path)
    bank.rows(np.arange(4))
    folder = bank.folder.relative_to(tmp_path)
    assert cli.main(["cache", "--verify"]) == 0 and capsys.readouterr().out == f"{folder}: whole\n"
    (bank.folder / "features").write_bytes(b"\1" * (bank.folder / "features").stat().st_size)
    assert cli.main(["cache", "--verify"]) == 1
    assert capsys.readouterr().out == f"{folder}: BROKEN: 1 blocks were changed\n" and bank.folder.exists()
    (bank.folder / "features").write_bytes(b"")
    assert cli.main(["cache", "--verify"]) == 1
    assert "it is now" in capsys.readouterr().err and not bank.folder.exists()
    FeatureBank(tower, make_table(), cpu, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("clsim.data.entries.shutil.rmtree", lambda *args: interrupt())
        cli._dispatch(["cache", "--clear"])
    assert not bank.folder.exists(), "it has lost its name, so nobody takes what is left of it for an entry"
    assert [path for path in bank.folder.parent.iterdir() if ".tmp-" in path.name]
    FeatureBank(tower, make_table(), cpu, tmp_path)
    assert not [path for path in bank.folder.parent.iterdir() if ".tmp-" in path.name]
    assert cli.main(["cache", "--clear"]) == 0 and not list(bank.folder.parent.iterdir())


def interrupt() -> None:
    raise KeyboardInterrupt
