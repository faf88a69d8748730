"""clsim.recorders.logs: `--log` writes the journal's numbers once each, and changes nothing else."""

import csv
from dataclasses import replace

import pytest

from clsim import cli, options, rundir
from clsim.errors import RequestError
from clsim.recorders import logs

pytestmark = pytest.mark.usefixtures("without_pictures")


def lines(run):
    with (run.directory / logs.CSV).open(newline="") as file:
        return [logs.Number(float(a), int(b), int(c), d, float(e)) for a, b, c, d, e in list(csv.reader(file))[1:]]


@pytest.fixture(scope="module")
def logged(finished, tmp_path_factory):
    """A finished run with a log."""
    return finished("l2p", tmp_path_factory.mktemp("logged"), log="csv", eval_every=8)


def test_the_log_has_every_number_of_the_journal(logged):
    records = list(rundir.read_records(logged.directory / rundir.EVENTS))
    tested = logged.matrix["experiences"]
    assert lines(logged) == [number for record in records for number in logs.numbers(record, tested)]
    by_name = {}
    for each in lines(logged):
        by_name.setdefault(each.name, []).append(each)
    assert [each.value for each in by_name["train/loss"]] == logged.events["step"]["loss"].tolist()
    assert [each.step for each in by_name["train/lr"]] == logged.events["step"]["step"].tolist()
    last = by_name["metrics/average_accuracy"][-1]
    assert (last.value, last.experience) == (logged.metrics["average_accuracy"], 3)
    row = [count / total for count, total in zip(logged.matrix["correct"][-1], logged.matrix["total"], strict=True)]
    assert [by_name[f"accuracy/{n:02d} {name}"][-1].value for n, name in enumerate(tested, 1)] == row
    assert any(name.startswith("anytime/") for name in by_name)


def test_no_result_no_hash_and_no_directory_depends_on_it(logged, finished, plan, tmp_path, same_run):
    plain = finished("l2p", tmp_path, eval_every=8)
    same_run(plain, logged)
    assert plain.summary["config_hash"] == logged.summary["config_hash"]
    assert not (plain.directory / logs.CSV).exists()
    with_log = plan("l2p", tmp_path, log=["csv"])
    assert with_log.hash("a") == replace(with_log, log=()).hash("a")
    assert plain.settings == logged.settings, "they share a row of a comparison"


def test_a_resumed_run_writes_no_number_twice(logged, finished, broken_off, tmp_path):
    def work():
        return finished("l2p", tmp_path, log="csv", eval_every=8, checkpoint_minutes=0)

    broken_off(5, work)
    broken_off(4, work)
    resumed = work()
    assert [each._replace(time=0) for each in lines(resumed)] == [each._replace(time=0) for each in lines(logged)]


def test_lists_and_undefined_numbers():
    where = {"time": 1.0, "experience": 2, "step": 3}
    listed = {"event": "log", "name": "chosen", "value": [4.0, None, 5.0], **where}
    single = {"event": "log", "name": "norm", "value": 0.5, **where}
    assert [(each.name, each.value) for each in logs.numbers(listed, [])] == [("chosen/00", 4.0), ("chosen/02", 5.0)]
    assert list(logs.numbers(single, [])) == [logs.Number(1.0, 2, 3, "log/norm", 0.5)]
    assert list(logs.numbers({"event": "end", "time": 1.0}, [])) == []


def test_the_option_takes_known_logs_only(capsys, tmp_path):
    assert options.logs("csv,csv", "log") == ("csv",) and options.logs((), "log") == ()
    with pytest.raises(RequestError, match="no log 'cvs'"):
        options.logs("cvs", "log")
    assert cli.main(["run", "--log", "nothing", "--out", str(tmp_path)]) == cli.MISTAKE
    assert "csv" in capsys.readouterr().err
