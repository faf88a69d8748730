"""Runs as jobs of SLURM, which submitit's local executor stands in for."""

import re
import signal
import threading
import time

import pytest
from test_engines_local import PLUGINS, configs_of, gone, toys

import clsim
from clsim.engines import many, slurm
from clsim.errors import RequestError

pytest.importorskip("submitit")


@pytest.fixture
def mine(tmp_path):
    """A file with the strategies of these tests."""
    (tmp_path / "mine.py").write_text(PLUGINS)
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:30", 5), ("4:00", 4), ("4:00:00", 240), ("1:30:01", 91), ("2-0", 2880), ("1-02:03", 1563)],
)
def test_times_are_slurms(text, minutes):
    assert slurm.parameters({"time": text}) == {"timeout_min": minutes}


def test_settings_get_submitits_names():
    given = {"partition": "gpu", "cpus-per-task": "4", "gpus_per_node": "1", "mem": "20GB", "reservation": "mine"}
    assert slurm.parameters(given) == {
        "timeout_min": 24 * 60, "cpus_per_task": 4, "gpus_per_node": 1,
        "slurm_partition": "gpu", "slurm_mem": "20GB", "slurm_additional_parameters": {"reservation": "mine"},
    }  # fmt: skip


def test_settings_without_sense_are_refused(tmp_path):
    for wrong, words in (
        ("time=soon", "minutes, hours:minutes:seconds or days-hours"),
        ("nodes=many", "--slurm nodes=many: it must be a number"),
        ("partition", "settings with values"),
    ):
        with pytest.raises(RequestError, match=words):
            clsim.run(**toys(tmp_path, "ncm"), slurm=wrong)
    with pytest.raises(RequestError, match="it is a number, or left out"):
        many.How("auto", slurm={"time": "5"}).engine(configs_of(tmp_path, "ncm"))


def test_a_job_has_as_many_cores_as_its_run_has_threads(tmp_path):
    configs = configs_of(tmp_path, "ncm")
    assert many.How(slurm={"time": "5"}).engine(configs).threads == 1
    assert many.How(3, slurm={"cpus-per-task": "6"}).engine(configs).threads == 6
    assert many.How(3, slurm={"cpus-per-task": "6"}).engine(configs).at_once == 3


@pytest.mark.slow
def test_jobs_run_and_what_fails_is_reported(tmp_path, mine, same_run, capsys):
    configs = configs_of(tmp_path / "out", f"{mine}:Faulty,{mine}:Killer,ncm", threads=1)
    runs, failed = many.run_all(configs, many.How(slurm={"time": "5"}).engine(configs))
    assert [run.summary["strategy"] for run in runs] == ["ncm"]
    assert [each.name.split("/")[1] for each in failed] == ["faulty", "killer"]
    assert "ZeroDivisionError" in failed[0].lines and "begins: toy/ncm/" in capsys.readouterr().out
    # a job whose process was killed is not sent again by itself; the same command goes on
    runs, failed = many.run_all(configs[1:2], many.How(slurm={"time": "5"}).engine(configs))
    assert failed == []
    same_run(runs[0], clsim.run(**toys(tmp_path / "alone", f"{mine}:Killer", threads=1)))


@pytest.mark.slow
def test_a_job_that_is_preempted_is_sent_again_and_ends_bit_equal(tmp_path, mine, same_run):
    configs = configs_of(tmp_path / "out", f"{mine}:Slow", threads=1)
    found = []
    engine = many.How(slurm={"time": "30"}).engine(configs)
    driver = threading.Thread(target=lambda: found.append(many.run_all(configs, engine, quiet=True)))
    driver.start()
    while not list((tmp_path / "out").rglob("state.json")):
        assert driver.is_alive()
        time.sleep(0.1)
    (worker,) = (int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*"))
    import os

    os.kill(worker, signal.SIGUSR2)
    gone([worker])
    driver.join()
    ((runs, failed),) = found
    assert failed == [] and len(list(tmp_path.glob("worker-*"))) == 2
    logs = "".join(path.read_text() for path in (tmp_path / "out" / "slurm").glob("*.err"))
    assert re.search("this job is preempted", logs)
    same_run(runs[0], clsim.run(**toys(tmp_path / "alone", f"{mine}:Slow", threads=1, pause=0)))
