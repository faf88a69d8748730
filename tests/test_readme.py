"""The README's own text, run."""

import re
from pathlib import Path

import clsim
from clsim import cli, plugins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
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


def test_the_variant_in_contributing_runs_and_differs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    (tmp_path / "smooth.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    losses = {}
    for words in ("vpt_deep", "smooth.py:SmoothVpt", "smooth.py:SmoothVpt smooth=0"):
        out = tmp_path / str(len(losses))
        assert cli.main(["run", "--strategy", *words.split(), *QUICK, "--quiet", "--out", str(out)]) == 0
        (summary,) = out.rglob("summary.json")
        losses[words] = clsim.load(summary.parent).events["step"]["loss"].tolist()
    plain, smooth, without = losses.values()
    assert plain == without
    assert smooth[0] > plain[0]  # the same first batch, and the pull on top


def test_tables_name_every_built_in():
    for kind in ("strategies", "scenarios"):
        for name in plugins.names(kind):
            assert f"`{name}`" in README, f"the README does not mention {name}"


def test_every_module_has_its_line():
    package = Path(clsim.__file__).parent
    for path in package.glob("*.py"):
        if path.stem not in ("__init__", "__main__", "version", "errors", "rng", "checkpoint"):
            assert path.name in README, f"the README does not mention {path.name}"
