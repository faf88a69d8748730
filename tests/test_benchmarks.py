"""The benchmarks: each starts, and the quick ones run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("[!_]*.py"))


def call(*words: object) -> str:
    """What a Python process prints. Fails the test if it fails."""
    command = [sys.executable, *map(str, words)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_benchmark_explains_itself(tmp_path):
    every = tmp_path / "every.py"  # all in one process, which imports torch once
    every.write_text(
        "import contextlib, os, runpy, sys\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(path, run_name='__main__')\n"
    )
    usages = re.findall(r"^usage: (\w+)\.py", call(every, *BENCHMARKS), flags=re.MULTILINE)
    assert usages == [path.stem for path in BENCHMARKS]


@pytest.mark.slow
def test_the_quick_benchmarks_run():
    assert "images/s" in call(ROOT / "tests/benchmarks/glyphs.py", "--rounds", 1, "--images", 12)
    lines = call(ROOT / "tests/benchmarks/startup.py", "--rounds", 1, "--runs", 3).splitlines()
    assert len(lines) == 8 and all("without torch" in line for line in lines[1:])


@pytest.mark.slow
def test_growth_has_a_table_and_a_picture(tmp_path):
    picture = tmp_path / "growth.png"
    lines = call(ROOT / "tests/benchmarks/growth.py", "--quick", "--only", "seeds", "--out", picture).splitlines()
    assert [line.split()[2] for line in lines[1:3]] == ["1", "5"] and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_learners_step_is_measured_in_a_runs_own_loop():
    words = ("--rounds", 1, "--steps", 1, "--batch-size", 2, "--model", "vit_nano")
    text = call(ROOT / "tests/benchmarks/tuners.py", *words)
    assert {"vpt_deep", "ncm"} <= {line.split()[0] for line in text.splitlines() if line.strip()}


@pytest.mark.slow
def test_the_roofline_divides_the_time_of_a_step_and_counts_its_products():
    words = ("--model", "vit_nano", "--strategies", "finetune", "--images", 64, "--rounds", 1)
    lines = call(ROOT / "tests/benchmarks/roofline.py", *words).splitlines()
    rows = {line[:22].strip(): line[22:].replace("%", "").split() for line in lines[2:]}
    assert list(rows) == ["finetune, training", "finetune, evaluation"]
    for _time, products, reached, alone, _bound, *rest in rows.values():
        assert 96 <= int(products) + sum(map(int, rest)) <= 104, "shares, each rounded"
        assert int(products) > 0 and int(reached) > 0 and int(alone) > 0


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_in_small_without_one():
    words = ("--tiny", "--device", "cpu", "--rounds", 1, "--steps", 1, "--batch-size", 4)
    lines = call(ROOT / "tests/benchmarks/gpu.py", *words).splitlines()
    rows = {line.split()[0]: line.replace("%", "").split()[1:] for line in lines[2:4]}
    assert list(rows) == ["training", "evaluation"]
    assert all(float(figure) > 0 for row in rows.values() for figure in row[:3])
    assert lines[4].startswith("whole stream: ") and " 200 images trained" in lines[4]


@pytest.mark.slow
def test_a_tree_is_compared_with_itself():
    words = ("--old", ROOT, "--strategies", "ncm", "--backbone", "vit_nano", "--rounds", 1)
    (line,) = call(ROOT / "tests/benchmarks/speed.py", *words).splitlines()[1:]
    name, *figures = line.split()
    assert name == "ncm" and len(figures) == 6 and all(float(figure) > 0 for figure in figures)


def test_nothing_that_is_killed_full_or_broken_changes_a_result():
    lines = call(ROOT / "tests/benchmarks/campaign.py", "--short").splitlines()
    assert lines[-1].startswith("0 faults")
    counted = {line.rsplit(maxsplit=5)[0]: list(map(int, line.split()[-5:])) for line in lines[2:-1]}
    assert len(counted) == 11 and all(sum(row[:2]) > 0 == sum(row[2:]) for row in counted.values())
