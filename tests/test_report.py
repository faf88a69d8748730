"""clsim.recorders.report: statistics and coordinates by hand, and a page that loads nothing and hides nothing."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clsim import cli, provenance, rundir
from clsim.errors import RequestError
from clsim.recorders import report
from clsim.recorders.report import checks, data, page, pictures, svg
from clsim.recorders.report.paired import difference

BROWSER = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page as a reader of HTML sees it: fails where a tag is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def made(
    out: Path,
    strategy: str = "finetune",
    seed: int = 0,
    correct: list[list[int | None]] | None = None,
    *,
    scenario_fields: str = "order_seed = 0",
    finished: bool = True,
    environment: dict[str, Any] | None = None,
    names: tuple[str, ...] = ("cats", "dogs"),
    matrix: dict[str, Any] | None = None,
    records: list[dict[str, Any]] | None = None,
    note: str = "none",
    notes: dict[str, str] | None = None,
    digest: str = "0a",
    steps: bool = True,
    code: str | None = None,
    **fields: Any,
) -> Path:
    """A run directory of two experiences with ten test images each, as a run leaves it."""
    rows = correct or [[8, None], [6, 9]]
    directory = out / "toys" / strategy / f"vit_micro-s{seed}-{digest}"
    directory.mkdir(parents=True)
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"mask": "seen", "lr": 0.1, **fields}.items())
    (directory / "config.toml").write_text(
        f"backbone = 'vit_micro'\nseed = {seed}\nnote = {json.dumps(note)}\nwith = []\n"
        f"[scenario]\nname = 'toys'\n{scenario_fields}\n[strategy]\nname = {json.dumps(strategy)}\n{values}"
    )
    journal = [{"event": "start", "experiences": 2}, {"event": "step", "loss": 1.0}, *(records or [])]
    (directory / "events.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in journal))
    known = {"packages": {"torch": "2.9"}, "weights": "w1", "tables": ["t1"], "device": "cpu", "plugins": {}}
    (directory / "env.json").write_text(json.dumps(known | (environment or {})))
    if not finished:
        return directory
    first, second = (count / 10 for count in rows[-1] if count is not None)
    summary = {
        "scenario": "toys",
        "strategy": strategy,
        "backbone": "vit_micro",
        "seed": seed,
        "config_hash": digest,
        "code": provenance.code_digest() if code is None else code,
        "protocol": "class",
        "metrics": {
            "average_accuracy": (first + second) / 2,
            "forgetting": (rows[0][0] or 0) / 10 - first,
            "learning_accuracy": ((rows[0][0] or 0) / 10 + second) / 2,
        },
        "cost": {
            "trainable_parameters": 1000,
            "stored_bytes_per_experience": 2048.0,
            "memory_bytes": 0,
            "images_per_second": 50.0 if steps else None,
        },
        "seconds": 12.0,
        "notes": notes or {},
    }
    content = {"correct": rows, "total": [10, 10], "experiences": list(names), "classes": [["a"], ["b"]]}
    (directory / "matrix.json").write_text(json.dumps({**content, "before": False, **(matrix or {})}))
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def page_of(folder: Path) -> str:
    report.write([folder], folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def only_stream(folder: Path) -> data.Stream:
    (stream,) = data.collect([folder]).streams
    return stream


# statistics


def test_paired_differences_by_hand() -> None:
    # 0.1, 0.05 and 0.2: mean 0.116667, standard deviation 0.0763763, times 4.302653 / sqrt(3) for 2 degrees of freedom
    found = difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.55, 2: 0.5})
    assert found is not None and found.pairs == 3 and not found.clear
    assert found.mean == pytest.approx(0.35 / 3)
    assert found.half == pytest.approx(4.302653 * 0.0763763 / 3**0.5, rel=1e-5)
    # 0.10, 0.11 and 0.12 with standard deviation 0.01: the interval of half width 0.0248 does not contain 0
    found = difference({0: 0.50, 1: 0.21, 2: 0.82}, {0: 0.40, 1: 0.10, 2: 0.70})
    assert found is not None and found.half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    assert found.clear and page.points(found) == "+11.0 ± 2.5"


def test_only_seeds_of_both_are_paired() -> None:
    found = difference({0: 0.5, 7: 0.9}, {0: 0.75, 3: 0.1})
    assert found == (-0.25, None, 1) and not found.clear
    assert page.points(found) == "-25.0"
    assert difference({0: 0.5}, {1: 0.5}) is None


def test_a_difference_of_nothing_has_no_sign() -> None:
    found = difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    assert found is not None and page.points(found) == "0.0 ± 0.0"


def test_the_table_of_differences_has_every_reference(tmp_path: Path) -> None:
    for seed, (low, high) in enumerate(((4, 7), (5, 7), (6, 9))):
        made(tmp_path, "finetune", seed, [[9, None], [low, low]])
        made(tmp_path, "l2p", seed, [[9, None], [high, high]])
    stream = only_stream(tmp_path)
    assert [row.name for row in stream.rows] == ["l2p", "finetune"]  # the best first
    # differences 30, 20 and 30: mean 26.67, standard deviation 5.7735, half 4.302653 * 5.7735 / sqrt(3) = 14.34
    own = page.differences(stream)[stream.measures.index("average_accuracy")]
    assert own == [
        [["reference", False], ["-26.7 ± 14.3", True]],
        [["+26.7 ± 14.3", True], ["reference", False]],
    ]
    assert "+26.7 ± 14.3 points; the 95 % interval over 3 pairs of runs with the same seed does not contain 0" in (
        page.answer(stream)
    )
    text = page_of(tmp_path)
    assert "76.7 ± 28.7" in text  # 70, 70 and 90: standard deviation 11.547
    assert "-26.7 ± 14.3" in Page(text).text


def test_of_very_many_rows_only_the_first_are_references(tmp_path: Path, monkeypatch: Any) -> None:
    made(tmp_path, "finetune", 0, [[9, None], [4, 4]])
    made(tmp_path, "l2p", 0, [[9, None], [7, 7]])
    monkeypatch.setattr(page, "MOST_REFERENCES", 1)
    assert page.differences(only_stream(tmp_path))[0] == [[["reference", False], ["-30.0", False]]]
    text = page_of(tmp_path)
    assert text.count("<option") == 1 and "(the first 1 methods)" in Page(text).text


def test_the_answer_says_when_the_order_may_be_chance(tmp_path: Path) -> None:
    for seed in (0, 1):
        made(tmp_path, "finetune", seed, [[9, None], [5 + seed, 5]])
        made(tmp_path, "l2p", seed, [[9, None], [6 - seed, 6]])
    assert "contains 0: the order may be chance" in page.answer(only_stream(tmp_path))


# pictures


def test_axes_by_hand() -> None:
    axis = svg.linear([52, 97], 200, 0, 0, 100)  # 45 / 5 = 9: steps of 10
    assert [text for _, text in axis.ticks] == ["50", "60", "70", "80", "90", "100"]
    assert (axis.at(50), axis.at(75), axis.at(100), axis.at(130)) == (200, 100, 0, 0)
    axis = svg.linear([100, 100], 200, 0, 0, 100)  # never beyond what is possible
    assert axis.ticks[-1] == (100, "100") and axis.at(100) == 0
    axis = svg.logarithmic([0, 200, 5000], 0, 336)  # 36 units for the 0, and then 100 to 10,000
    assert [text for _, text in axis.ticks] == ["0", "100", "1k", "10k"]
    assert [axis.at(value) for value in (0, 100, 1000, 10000)] == [10, 36, 186, 336]
    assert svg.logarithmic([20, 50], 0, 100).at(10) == 0


def test_a_curve_by_hand() -> None:
    picture = svg.curves(
        [svg.Curve("alpha", "a", [(1, 50, 0), (2, 90, 10)], 3)], "after experience", "accuracy, %", whole=True
    )
    # the plot is 194 high from 208 up to 14, for 50 to 100 %; 54 to 336.4 wide, because the name needs 7.6 and 12
    assert '<polyline points="54,208 336.4,52.8" class="line"/>' in picture
    assert '<polygon points="54,208 336.4,14 336.4,91.6 54,208" class="band"/>' in picture
    assert 'class="s3"' in picture and '<text x="346.4" y="56.8" class="s3 name">a</text>' in picture
    assert "polygon" not in svg.curves([svg.Curve("alpha", "a", [(1, 50, None), (2, 90, None)], 0)], "x", "y")


def test_a_scatter_by_hand() -> None:
    points = [svg.Point("free lunch", "free", 0, 80, None, None, 0), svg.Point("all", "all", 1e6, 60, None, 10, 1)]
    picture = svg.scatter(points, "parameters", "accuracy, %", log=True)
    # 0 is 10 after the start of the axis, and a million 36 after it; y goes from 50 to 80 %, 194 / 30 units each
    assert '<circle cx="56" cy="14" r="4.5" class="dot"/>' in picture
    assert '<circle cx="82" cy="143.3" r="4.5" class="dot"/>' in picture
    assert re.findall(r'<line [^>]* class="bar"/>', picture) == [
        '<line x1="82" y1="78.7" x2="82" y2="208" class="bar"/>'
    ]
    names = dict(re.findall(r'class="(s\d) name">(\w+)<', picture))
    assert names == {"s0": "free", "s1": "all"}


def test_a_heat_map_by_hand() -> None:
    picture = svg.heat_map([[0.0, None], [100.0, 50.0]], ["1", "2"], ["1", "2"], "after experience", "tested on")
    cells = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="33" height="33" (?:fill="(#\w+)"|class="(\w+)")', picture
    )
    # names take 20 + 6.6 + 4 on the left; titles 18 + 16 above
    assert cells == [
        ("30.6", "34", "#440154", ""),
        ("64.6", "34", "", "empty"),
        ("30.6", "68", "#fde725", ""),
        ("64.6", "68", "#21918c", ""),
    ]
    assert re.findall(r'class="number (\w+)">([\d.]+)<', picture) == [
        ("light", "0.0"),
        ("dark", "100.0"),
        ("light", "50.0"),
    ]
    assert svg.colour(1 / 16) == "#461768"  # half of the way from #440154 to #472d7b
    half = svg.heat_map([[10.0]], ["1"], ["1"], "experience", "prompt", most=20.0)
    assert 'fill="#21918c"' in half


def test_labels_of_curves_keep_their_order_and_their_distance() -> None:
    assert svg.spread([100, 101, 50], 14, 208) == [100, 114, 50]
    assert svg.spread([208, 207, 206], 14, 208) == [208, 194, 180]


def test_names_of_points_cover_no_other_and_nothing_drawn() -> None:
    points = [svg.Point(f"m {number}", f"method {number}", 50, 50 + number, 3, 3, number) for number in range(6)]
    picture = svg.scatter(points, "x", "y", percentages=True)
    boxes = []
    for x, y, anchor, name in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="s\d name">([^<]+)<', picture
    ):
        width = len(name) * svg.BOLD
        left = float(x) - {"start": 0, "end": width, "middle": width / 2}[anchor]
        boxes.append((left, float(y) - 10, left + width, float(y) + 3))
    assert len(boxes) >= 2
    apart = [
        a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for i, a in enumerate(boxes) for b in boxes[:i]
    ]
    assert all(apart)
    assert all(box[0] >= 0 and box[2] <= svg.WIDTH for box in boxes)


def test_many_or_long_names_become_numbers(tmp_path: Path) -> None:
    for number in range(9):
        made(tmp_path, "l2p", digest=f"{number:02}", correct=[[9, None], [9 - number, 9]], top_k=number)
    stream = only_stream(tmp_path)
    assert [row.label for row in stream.rows] == [str(number) for number in range(1, 10)]
    text = page_of(tmp_path)
    assert '<span class="mark s1">2</span><span>l2p top_k=1</span>' in text and 'class="s1 name">2</text>' in text
    found = Page(text).text
    assert "Which of 9 methods has" in found and "Bands are left out for more than 8 methods" in found
    made(tmp_path / "few", "a_name_that_is_longer")
    assert only_stream(tmp_path / "few").numbered
    made(tmp_path / "fewer", "l2p")
    assert not only_stream(tmp_path / "fewer").numbered


def test_curves_are_means_over_learned_experiences(tmp_path: Path) -> None:
    made(tmp_path, seed=0, correct=[[8, None], [6, 9]])
    made(tmp_path, seed=1, correct=[[10, None], [4, 9]])
    (row,) = only_stream(tmp_path).rows
    (one, first, first_half), (two, last, last_half) = row.curve
    assert (one, two) == (1, 2)
    assert (first, last) == (pytest.approx(90), pytest.approx(70))  # 80 and 100; 75 and 65
    # Student's t for 1 degree of freedom is 12.7062; standard errors are 10 and 5
    assert (first_half, last_half) == (pytest.approx(127.062, rel=1e-4), pytest.approx(63.531, rel=1e-4))
    assert row.matrix == [[pytest.approx(90), None], [pytest.approx(50), pytest.approx(90)]]


def test_only_what_was_recorded_is_drawn(tmp_path: Path) -> None:
    made(tmp_path / "a")
    plain = {figure.title for figure in pictures.figures(only_stream(tmp_path / "a"))}
    assert plain == {"Average accuracy after each experience", "Trade-offs", "Accuracy matrices"}
    usage = [{"event": "log", "name": "prompt_usage", "value": [3, 1]}, {"event": "log", "name": "other", "value": 1.0}]
    anytime = [{"images": 10, "step": 1, "correct": [4, None]}, {"images": 30, "step": 3, "correct": [8, 6]}]
    more: dict[str, Any] = {
        "anytime": anytime,
        "task_correct": [[10, None], [5, 10]],
        "confusion": {"target": [[8, 2, 0], [5, 5, 0], [0, 0, 0]]},
    }
    made(tmp_path / "b", matrix=more, records=usage)
    found = {figure.title: figure for figure in pictures.figures(only_stream(tmp_path / "b"))}
    recorded = {"Use of prompts", "Detected experience", "Accuracy by class", "Confusion"}
    assert found.keys() - plain == {*recorded, "Accuracy inside experiences"}
    assert found["Use of prompts"].scale == 75.0
    (row,) = only_stream(tmp_path / "b").rows
    assert row.prompt_usage == [[75.0, 25.0]]
    assert row.anytime == [(10, pytest.approx(40), None), (30, pytest.approx(70), None)]
    assert row.task_matrix == [[100.0, None], [50.0, 100.0]]
    assert row.confusion is not None and row.confusion[:2].tolist() == [[80.0, 20.0, 0.0], [50.0, 50.0, 0.0]]
    ((_, picture),) = found["Accuracy by class"].pictures
    assert re.findall(r'class="number \w+">([\d.]+)<', picture) == ["80.0", "50.0"]  # the third has no images


# the page


def test_a_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    for seed in (0, 1):
        made(tmp_path, "finetune", seed)
        made(tmp_path, "l2p", seed, records=[{"event": "log", "name": "prompt_usage", "value": [3, 1]}])
    made(
        tmp_path,
        "er",
        finished=False,
        records=[{"event": "evaluation", "experience": 1, "metrics": {"average_accuracy": 0.5}}],
    )
    made(tmp_path, "ncm", finished=False)
    text = page_of(tmp_path)
    found = Page(text)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    loading = [
        (tag, attributes) for tag, attributes in found.tags if {"src", "srcset", "data", "action"} & attributes.keys()
    ]
    assert not loading and not {tag for tag, _ in found.tags} & {"link", "img", "iframe", "object", "embed"}
    assert [attributes["href"] for tag, attributes in found.tags if tag == "a"] == []
    for strategy in ("finetune", "l2p"):
        config = tmp_path / "toys" / strategy / "vit_micro-s0-0a" / "config.toml"
        assert f"clsim run --config {config} --seed 0,1" in found.text
    assert f"{tmp_path}/toys/er/vit_micro-s0-0a: 1 of 2 experiences are finished, average accuracy 50.0 %" in found.text
    assert f"{tmp_path}/toys/ncm/vit_micro-s0-0a: no experience is finished yet" in found.text
    assert "Not everything here is comparable" not in found.text
    assert [attributes.get("name") for tag, attributes in found.tags if tag == "meta"] == [
        None,
        "viewport",
        "color-scheme",
    ]
    assert (
        "Which has the highest average accuracy on toys (class protocol, 2 test sets) with vit_micro, seeds 0, 1"
        in (found.text)
    )


def test_text_of_users_is_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9 <b>")
    name = "</script><script>alert(1)</script>\"'&"
    made(
        folder,
        "l2p",
        names=(name, "\ud800"),
        note=name,
        notes={"caveat 1": name},
        matrix={"task_correct": [[1, None], [2, 3]]},
    )
    made(folder, "er<i>'\"", finished=False)
    text = page_of(folder)
    found = Page(text)
    assert "alert(1)</script>" not in text
    assert found.text.count(name) == 3  # the caveat, the note, and the names under the matrices
    assert "caf\\xe9 <b>" in found.text and "\\ud800" in found.text and "er<i>'\"" in found.text
    assert [tag for tag, _ in found.tags].count("script") == 2 and "b" not in [tag for tag, _ in found.tags]


def test_runs_that_are_not_comparable_give_warnings(tmp_path: Path) -> None:
    made(tmp_path, "finetune", 0)
    made(
        tmp_path,
        "l2p",
        0,
        mask="current",
        environment={"weights": "w2", "device": "gpu", "packages": {"torch": "2.10"}},
    )
    made(tmp_path, "er", 1, code="other")
    made(tmp_path, "ncm", 0, mask="all", steps=False)
    stream = only_stream(tmp_path)
    found = checks.warnings(stream.rows)
    begins = [text.partition(":")[0] for text in found]
    assert begins == ["mask", "weights", "code", "seeds", "device", "torch"]
    assert found[0].endswith("seen (er, finetune); current (l2p).")  # without steps, a mask has no effect
    assert "w2 (l2p)" in found[1]
    text = Page(page_of(tmp_path)).text
    assert "Not everything here is comparable" in text
    assert all(warning in text for warning in found)
    assert "made by other code of clsim than this report: er." in text
    assert "no common seed" in text


def test_other_test_images_and_other_code_between_seeds_give_warnings(tmp_path: Path) -> None:
    made(tmp_path, "finetune", 0, environment={"plugins": {"strategy 'finetune'": "finetune@1"}})
    made(tmp_path, "finetune", 1, environment={"plugins": {"strategy 'finetune'": "finetune@2"}})
    made(tmp_path, "l2p", 0, matrix={"total": [20, 20]})
    begins = [text.partition(":")[0] for text in checks.warnings(only_stream(tmp_path).rows)]
    assert begins == ["test images", "finetune", "seeds"]


def test_a_stream_may_depend_on_the_seed(tmp_path: Path) -> None:
    for strategy in ("finetune", "l2p"):
        made(tmp_path, strategy, 0)
        made(tmp_path, strategy, 1, names=("dogs", "cats"), matrix={"classes": [["b"], ["a"]]})
    assert checks.warnings(only_stream(tmp_path).rows) == []
    found = Page(page_of(tmp_path)).text
    assert "Which classes an experience has depends on the seed." in found and "1: cats" not in found


def test_other_streams_have_other_tables(tmp_path: Path) -> None:
    made(tmp_path / "a", "finetune")
    made(tmp_path / "b", "l2p", scenario_fields="order_seed = 1")
    text = page_of(tmp_path)
    found = Page(text)
    assert [attributes["id"] for tag, attributes in found.tags if tag == "section"] == ["stream-1", "stream-2"]
    assert "toys order_seed=0" in found.text and "toys order_seed=1" in found.text
    assert "with different settings of a scenario, are not comparable" in found.text
    assert [attributes["href"] for tag, attributes in found.tags if tag == "a"] == ["#stream-1", "#stream-2"]


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    made(tmp_path, "finetune", lr=0.5, momentum=0.9)
    made(tmp_path, "l2p", pool_size=10, momentum=0.9)
    made(tmp_path, "l2p", digest="0b", pool_size=20, momentum=0.9)
    names, values = checks.settings(only_stream(tmp_path).rows)
    assert names == ["lr", "pool_size"]
    assert values == [["0.5", "-"], ["0.1", "10"], ["0.1", "20"]]


def test_provenance_names_values_and_their_rows(tmp_path: Path) -> None:
    made(tmp_path, "finetune", environment={"python": "3.11"})
    made(tmp_path, "l2p", environment={"python": "3.12"})
    found = {fact.name: fact.text for fact in checks.provenance(only_stream(tmp_path).rows)}
    assert found["python"] == "3.11 (finetune); 3.12 (l2p)"
    assert found["torch"] == "2.9 (finetune, l2p)" and "commit" not in found


def test_a_run_without_provenance_is_reported_and_a_broken_one_is_not(tmp_path: Path) -> None:
    directory = made(tmp_path)
    (directory / "env.json").unlink()
    (directory / "events.jsonl").unlink()
    assert "60.0" in page_of(tmp_path)
    (directory / "env.json").write_text("{")
    with pytest.raises(RequestError, match="env.json is broken"):
        page_of(tmp_path)


def test_only_lines_of_the_wanted_kinds_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "log", "name": "a"}\n{"event": "step", not JSON}\n{"event": "log", "na')
    assert list(rundir.read_records(path, "log")) == [{"event": "log", "name": "a"}]
    with pytest.raises(RequestError, match="broken"):
        list(rundir.read_records(path))


# the command


def test_a_report_needs_no_torch_and_no_matplotlib(tmp_path: Path) -> None:
    made(tmp_path)
    code = (
        "import sys; from clsim import cli; status = cli.main(sys.argv[1:]);"
        "sys.exit(status or bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "report", str(tmp_path), "--out", str(tmp_path / "report.html")]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_command_writes_the_report_and_opens_it(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    made(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert cli.main(["report", "runs"]) == 0
    assert capsys.readouterr().out == "report.html\n" and not opened
    assert cli.main(["report", "runs", "--out", "new/own.html", "--open"]) == 0
    assert opened == [(tmp_path / "new/own.html").as_uri()]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["own.html"]
    assert cli.main(["report", "runs", "--out", "runs"]) == 2
    assert cli.main(["report", "nothing"]) == 2


def test_a_watched_report_grows_until_it_is_interrupted(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    made(runs, "finetune")
    seen: list[str] = []

    def sleep(seconds: float) -> None:
        seen.append(out.read_text())
        if len(seen) == 1:
            made(runs, "l2p")
        if len(seen) == 2:
            (broken,) = runs.rglob("l2p/*/matrix.json")
            broken.unlink()
        if len(seen) == 3:
            shutil.rmtree(runs / "toys" / "l2p")
            raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", sleep)
    assert cli.main(["report", str(runs), "--out", str(out), "--watch"]) == 0
    assert ["l2p" in text for text in seen] == [False, True, True]  # a run that cannot be read now changes nothing
    assert "matrix.json is missing" in capsys.readouterr().err
    refresh = '<meta http-equiv="refresh" content="5">'
    assert all(refresh in text for text in seen)
    assert refresh not in out.read_text() and "l2p" not in out.read_text()


def test_the_command_of_a_row_finds_its_runs_again(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = "run --strategy ncm --backbone vit_nano --seed 0,1 scenario.train_per_class=3 scenario.test_per_class=2"
    assert cli.main([*words.split(), "--threads", "1", "--out", "my runs"]) == 0
    before = sorted(Path("my runs").rglob("summary.json"))
    (command,) = re.findall("clsim (run --config .*)", Page(page_of(Path("my runs"))).text)
    for path in before:
        path.unlink()  # as if they had not finished
    assert cli.main(shlex.split(command)) == 0
    assert sorted(Path("my runs").rglob("summary.json")) == before and len(before) == 2


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_sorts_and_changes_the_reference(tmp_path: Path) -> None:
    made(tmp_path, "finetune", correct=[[9, None], [3, 5]])
    made(tmp_path, "l2p", correct=[[9, None], [6, 8]])
    report.write([tmp_path], tmp_path / "report.html")
    clicks = """<script>
    document.querySelectorAll("table.results thead button")[0].click();
    const choice = document.querySelector("select");
    choice.value = "1";
    choice.dispatchEvent(new Event("change"));
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text((tmp_path / "report.html").read_text().replace("</body>", clicks))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", driven.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    table = re.search(r'<table class="results">.*?</table>', done.stdout, re.S)
    assert table is not None
    rows = re.findall(r'<tr data-row="(\d)">.*?<small class="(\w+)">([^<]*)<', table[0], re.S)
    assert rows == [("1", "unclear", "reference"), ("0", "unclear", "+30.0")]
    assert 'aria-sort="ascending"' in table[0]
