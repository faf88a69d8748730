"""The text of README and CONTRIBUTING, run."""

import re
from pathlib import Path

import clsim
from clsim import cli, plugins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.S)
QUICK = ["--backbone", "vit_nano", "--epochs", "1", "scenario.train_per_class=5", "scenario.test_per_class=3"]


def test_the_strategy_in_the_readme_is_complete_and_short(tmp_path, monkeypatch, capsys):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class Cosine(" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    (tmp_path / "cosine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^clsim run (--strategy cosine.*)$", README, re.M)
    assert len(lines) == 2
    for line in lines:
        assert cli.main(["run", *line.split(), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "cosine" in out and "ncm" in out
    plain, rehearsed = (clsim.load(path.parent) for path in sorted(tmp_path.glob("runs/*/cosine/*/summary.json")))
    assert {run.config["strategy"]["scale"] for run in (plain, rehearsed)} == {16.0, 20.0}


def block_with(name):
    """The code block of CONTRIBUTING that defines the class `name`."""
    (code,) = [block for block in BLOCKS if f"class {name}(" in block]
    return code


def losses_of(words, out):
    """The loss of every step of a quick run."""
    assert cli.main(["run", *words.split(), *QUICK, "--quiet", "--out", str(out)]) == 0
    (summary,) = out.rglob("summary.json")
    return clsim.load(summary.parent).events["step"]["loss"].tolist()


def test_the_variant_in_contributing_runs_and_differs(tmp_path, monkeypatch):
    (tmp_path / "smooth.py").write_text(block_with("SmoothVpt"))
    monkeypatch.chdir(tmp_path)
    words = ("vpt_deep", "smooth.py:SmoothVpt", "smooth.py:SmoothVpt smooth=0")
    plain, smooth, without = (losses_of(f"--strategy {each}", tmp_path / str(i)) for i, each in enumerate(words))
    assert plain == without
    assert smooth[0] > plain[0]  # the same first batch, and the penalty on top


def test_the_part_in_contributing_runs_and_its_field_counts(tmp_path, monkeypatch):
    (tmp_path / "stay.py").write_text(block_with("Stay"))
    monkeypatch.chdir(tmp_path)
    words = ("", "--with stay.py:Stay,weight=0", "--with stay.py:Stay,weight=100")
    runs = [losses_of(f"--strategy linear batch_size=4 {each}", tmp_path / str(i)) for i, each in enumerate(words)]
    plain, without, held = runs
    assert plain == without
    second = len(plain) // 5  # five experiences of as many images
    assert held[: second + 1] == plain[: second + 1] and held[second + 1] > plain[second + 1]


def test_the_example_of_a_scenario_runs_with_its_own_protocol(tmp_path):
    file = ROOT / "docs" / "examples" / "turned_digits.py"
    assert len(file.read_text().splitlines()) <= 40
    words = ["--scenario", f"{file}:TurnedDigits", "--strategy", "linear", "--quiet", "--out", str(tmp_path)]
    assert cli.main(["run", *words, *QUICK]) == 0
    (summary,) = tmp_path.rglob("summary.json")
    run = clsim.load(summary.parent)
    assert run.summary["protocol"] == "met domains"
    assert [[cell is None for cell in row] for row in run.matrix["correct"]] == [[False, True], [False, False]]


def test_tables_name_every_built_in():
    for kind in ("strategies", "scenarios"):
        for name in plugins.names(kind):
            assert f"`{name}`" in README, f"the README does not mention {name}"


def test_the_readme_names_every_folder_and_the_files_to_open_first():
    code = README.partition("## The code")[2]
    for path in [*(ROOT / "clsim").glob("*/__init__.py"), *ROOT.glob("[!c]*/__init__.py")]:
        assert f"`{path.parent.relative_to(ROOT)}/`" in code
    for name in ("strategy", "events", "outputs", "loop", "runner"):
        assert (ROOT / "clsim" / f"{name}.py").exists() and f"{name}.py`" in code
    named = re.findall(r"`(?:clsim/)?(\w+\.py)`", code)
    assert named and all((ROOT / "clsim" / name).exists() for name in named)


def test_contributing_is_short_and_names_files_that_exist():
    assert len(CONTRIBUTING.splitlines()) < 120
    for block in BLOCKS:
        assert len(block.strip().splitlines()) < 40
    named = re.findall(r"`((?:clsim|tests|strategies|scenarios|docs)/[\w/.]*)`", CONTRIBUTING)
    assert [name for name in named if not (ROOT / name).exists()] == []
