"""clsim.inspect_runs: the state of every run of a folder, without torch, and without disturbing a run."""

import csv
import io
import json
import shutil
import subprocess
import sys
import threading

import pytest

from clsim import cli, inspect_runs, rundir, runner

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def runs(finished, plan, tmp_path_factory):
    """A folder with two finished runs, one of them of adaptation."""
    out = tmp_path_factory.mktemp("runs")
    finished("linear", out, epochs=1, seed=1)
    finished("ncm", out, {"protocol": "pair"})
    return out


@pytest.fixture
def folder(runs, tmp_path):
    """A copy of it."""
    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path / "runs"


def rows(folder):
    return json.loads(inspect_runs.report([folder], "json"))


def test_finished_runs_have_their_place_and_what_compare_sorts_by(folder):
    first, second = rows(folder)
    assert (first["scenario"], first["strategy"], first["backbone"], first["seed"]) == ("toy", "linear", "vit_nano", 1)
    assert (first["state"], first["experience"], first["experiences"], first["step"]) == ("finished", 3, 3, 9)
    summary = json.loads((rundir.below([folder])[0] / rundir.SUMMARY).read_text())
    assert (first["metric"], first["accuracy"]) == ("average_accuracy", summary["metrics"]["average_accuracy"])
    assert (second["scenario"], second["strategy"], second["metric"]) == ("toy.day-night", "ncm", "target_accuracy")
    assert second["accuracy"] is not None and second["problem"] is None and 0 <= second["age_seconds"] < 600


def test_an_interrupted_run_stands_where_its_journal_ends_and_is_running_while_its_lock_is_held(
    plan, broken_off, tmp_path
):
    config = plan("linear", tmp_path, epochs=1, checkpoint_minutes=0)
    broken_off(4, lambda: runner.run_all([config], quiet=True))
    (found,) = rows(tmp_path)
    assert (found["state"], found["scenario"], found["seed"]) == ("interrupted", "toy", 0)
    assert (found["experience"], found["experiences"], found["step"]) == (2, 3, 5)
    assert found["accuracy"] is None and found["problem"] is None
    with rundir.alone_in(rundir.below([tmp_path])[0]):
        assert rows(tmp_path)[0]["state"] == "running"
    (journal,) = tmp_path.rglob(rundir.EVENTS)
    with journal.open("ab") as file:
        file.write(b'{"event": "step", "experience": 3, "st')  # a line that is not written to its end
    assert rows(tmp_path)[0] | {"age_seconds": 0} == found | {"age_seconds": 0}
    journal.unlink()
    (found,) = rows(tmp_path)
    assert (found["state"], found["experience"], found["experiences"], found["step"]) == (
        "interrupted",
        None,
        None,
        None,
    )


def test_a_damaged_run_is_broken_and_says_why(folder):
    first, second = rundir.below([folder])
    (first / rundir.MATRIX).write_text("{}")
    (second / rundir.SUMMARY).unlink()
    (second / rundir.CONFIG).write_text("seed = ")
    found = {each["directory"]: each for each in rows(folder)}
    assert [each["state"] for each in found.values()] == ["broken", "broken"]
    assert f"{rundir.MATRIX} was changed" in found[str(first)]["problem"]
    assert rundir.CONFIG in found[str(second)]["problem"] and found[str(second)]["strategy"] == "?"
    assert found[str(first)]["strategy"] == "linear"
    assert inspect_runs.report([folder]).count("\nbroken: ") == 2
    with rundir.alone_in(first):  # --fresh is just making it again
        assert next(each for each in rows(folder) if each["directory"] == str(first))["state"] == "running"


def test_the_table_and_the_csv_show_the_same_runs_in_the_same_order(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert cli.main(["runs"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "scenario strategy backbone seed state age experience step accuracy %"
    accuracy = f"{100 * rows(folder)[0]['accuracy']:.1f}"
    assert lines[0].split()[:5] == ["toy", "linear", "vit_nano", "1", "finished"]
    assert lines[0].split()[-5:] == ["3", "of", "3", "9", accuracy]
    assert lines[-2:] == ["", "2 runs: 2 finished"]
    assert cli.main(["runs", "--format", "csv", str(folder)]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [each["directory"] for each in table] == [each["directory"] for each in rows(folder)]
    assert cli.main(["runs", "nowhere"]) == cli.MISTAKE


def test_a_run_may_begin_while_its_lock_is_tested(tmp_path, monkeypatch):
    (tmp_path / rundir.LOCK).touch()
    began = threading.Event()
    close = rundir.os.close

    def slowly(handle):
        began.set()
        threading.Event().wait(rundir.TEST_SECONDS / 5)
        close(handle)

    with monkeypatch.context() as patch:
        patch.setattr(rundir.os, "close", slowly)
        test = threading.Thread(target=rundir.in_use, args=(tmp_path,))
        test.start()
        began.wait()
        with rundir.alone_in(tmp_path):
            test.join()
            assert rundir.in_use(tmp_path)
    assert not rundir.in_use(tmp_path) and not rundir.in_use(tmp_path / "nowhere")


def test_ages_are_rounded_down_to_whole_units():
    assert [inspect_runs.age(seconds) for seconds in (0.4, 59.9, 60, 3599, 7200, 86400 * 3.9)] == [
        *("0 s", "59 s", "1 min", "59 min", "2 h", "3 d")
    ]


def test_no_torch_is_imported(folder):
    code = f"import sys; from clsim import cli; cli.main(['runs', {str(folder)!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
