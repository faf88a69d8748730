"""clsim.reevaluation: a finished run gives its recorded counts again, and `verify --evaluate` sees where not."""

import json
import shutil
from itertools import product

import pytest
import torch

import clsim
from clsim import checkpoint, checksums, cli, plugins, reevaluation, rundir, runner

pytestmark = pytest.mark.usefixtures("without_pictures")

EACH_KIND = ["linear", "ncm", "l2p", "joint", "lora", "s_prompts", "coop", "zero_shot", "dann"]
PROTOCOLS = ["class", "task", "domain", "pair", "targets"]
QUICK = {("linear", each) for each in PROTOCOLS} | {(each, "class") for each in EACH_KIND}
QUICK |= {("coop", "task"), ("s_prompts", "domain"), ("dann", "pair"), ("dann", "targets")}
PAIRS = [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in product(EACH_KIND, PROTOCOLS)]


def passes(run, capsys):
    """Whether `clsim verify --evaluate` passes, by its exit status and by its line."""
    status = cli.main(["verify", "--evaluate", str(run.directory)])
    (line,) = capsys.readouterr().out.splitlines()
    passed = line.startswith(f"{run.directory}: as recorded: ")
    assert passed or line.startswith(f"{run.directory}: DIFFERS: ")
    assert status == (cli.DONE if passed else cli.FAILED)
    return passed


@pytest.mark.parametrize(("name", "protocol"), PAIRS)
def test_every_kind_of_strategy_gives_its_counts_again_under_every_protocol(name, protocol, finished, tmp_path, capsys):
    run = finished(name, tmp_path, {"protocol": protocol}, epochs=1)
    row = run.matrix["correct"][-1]
    assert any(count is not None for count in row)
    _, again, total = reevaluation.counts(run)
    assert (again, total) == (row, run.matrix["total"])
    assert passes(run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in plugins.names("strategies") if name not in EACH_KIND])
def test_every_strategy_gives_its_counts_again(name, finished, tmp_path, capsys):
    assert passes(finished(name, tmp_path, epochs=1), capsys)


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """A run with a memory, and a head that is trained."""
    return finished("linear", tmp_path_factory.mktemp("whole"), epochs=1, **{"with": ["er:4"]})


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole.directory, tmp_path / "toy" / "linear" / "run")
    return clsim.load(tmp_path / "toy" / "linear" / "run")


def seal(run):
    """Write the checksums of the files as they are now: only an evaluation sees what is wrong."""
    text = (run.directory / rundir.SUMMARY).read_text()
    (run.directory / rundir.SUMMARY).unlink()
    written = checksums.text_for(run.directory, {rundir.SUMMARY: text})
    (run.directory / rundir.CHECKSUMS).write_text(written)
    (run.directory / rundir.SUMMARY).write_text(text)
    return clsim.load(run.directory)


def test_a_recorded_count_that_is_not_so_is_named(run, capsys):
    matrix = json.loads((run.directory / rundir.MATRIX).read_text())
    before = matrix["correct"][-1][1]
    matrix["correct"][-1][1] = before + 1
    (run.directory / rundir.MATRIX).write_text(json.dumps(matrix))
    seal(run)
    assert cli.main(["verify", str(run.directory)]) == cli.DONE
    capsys.readouterr()
    assert cli.main(["verify", "--evaluate", str(run.directory)]) == cli.FAILED
    (line,) = capsys.readouterr().out.splitlines()
    name, total = matrix["experiences"][1], matrix["total"][1]
    said = f"test experience 2 ({name}): {before} of {total} correct, recorded {before + 1} of {total}"
    assert line == f"{run.directory}: DIFFERS: {said}"


def test_other_weights_give_other_counts(run, capsys):
    saved = checkpoint.load(run.directory / rundir.CHECKPOINT)
    learned = {name: tensor for name, tensor in saved["learner"].items() if tensor.is_floating_point()}
    saved["learner"] |= {name: torch.randn(tensor.shape) for name, tensor in learned.items()}
    checkpoint.save(run.directory / rundir.CHECKPOINT, saved)
    changed = seal(run)
    _, row, total = reevaluation.counts(changed)
    assert row != changed.matrix["correct"][-1] and total == changed.matrix["total"]
    assert not passes(changed, capsys)


def test_broken_unfinished_and_impossible_runs_do_not_pass(run, plan, broken_off, tmp_path, capsys):
    broken_off(1, lambda: runner.run_all([plan("linear", tmp_path / "unfinished", epochs=1)], quiet=True))
    text = (run.directory / rundir.CONFIG).read_text()
    (run.directory / rundir.CONFIG).write_text(text.replace('backbone = "vit_nano"', 'backbone = "vit_lost"'))
    assert cli.main(["verify", "--evaluate", str(tmp_path)]) == cli.FAILED
    first, second = sorted(capsys.readouterr().out.splitlines())
    assert "BROKEN: config.toml was changed" in first
    assert second.endswith("not finished: there is no last evaluation to repeat")
    seal(run)
    assert cli.main(["verify", "--evaluate", str(run.directory)]) == cli.FAILED
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be evaluated: " in line and "vit_lost" in line


def test_changed_plug_ins_are_noted_and_the_counts_decide(run, capsys):
    summary = json.loads((run.directory / rundir.SUMMARY).read_text())
    (run.directory / rundir.SUMMARY).write_text(json.dumps(summary | {"config_hash": "00000000"}))
    seal(run)
    assert cli.main(["verify", "--evaluate", str(run.directory)]) == cli.DONE
    (line,) = capsys.readouterr().out.splitlines()
    assert "as recorded" in line and line.endswith(", not 00000000)")
