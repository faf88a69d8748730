"""Runs on a local Ray cluster: processes and machines are lost, and every run ends bit-equal."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_engines_local import PLUGINS, configs_of, gone, toys, words

import clsim
from clsim import cli
from clsim.engines import many
from clsim.engines.ray import Ray
from clsim.errors import RequestError

ray = pytest.importorskip("ray")


@pytest.fixture
def mine(tmp_path):
    """A file with the strategies of these tests."""
    (tmp_path / "mine.py").write_text(PLUGINS)
    return f"{tmp_path}/mine.py"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory of its own, for what Ray leaves there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_requests_without_sense_are_refused(tmp_path):
    configs = configs_of(tmp_path, "ncm")
    for how, words_of_error in (
        (many.How(ray="lr=0.1"), "write fields before it"),
        (many.How(ray="", slurm={"time": "5"}), "give one of them"),
        (many.How(ray="", jobs=2), "--threads says"),
    ):
        with pytest.raises(RequestError, match=words_of_error):
            how.engine(configs)
    with pytest.raises(RequestError, match="write fields before it"):
        cli._dispatch(["run", *words(toys(tmp_path, "linear")), "--ray", "lr=0.1"])
    with pytest.raises(RequestError, match="ray must be the address"):
        clsim.run(**toys(tmp_path, "ncm"), ray=5)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'clsim\[ray\]'"):
        Ray("")


@pytest.mark.slow
def test_a_local_cluster_runs_all_and_a_killed_worker_ends_bit_equal(tmp_path, mine, home, same_run):
    asked = toys(tmp_path / "out", f"{mine}:Killer,{mine}:Faulty,ncm") | {"threads": 1}
    line = [sys.executable, "-m", "clsim", "run", *words(asked), "--ray"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert len(list(tmp_path.glob("killed-0-*"))) == 1
    assert re.search(r"failed: \S+/faulty/.*after_update failed .*ZeroDivisionError: division by zero", done.stderr)
    assert "clsim: failed: 1 of 3 runs: toy/faulty/" in done.stderr
    assert "begins: toy/killer/" in done.stdout and "done 2 of 3: " in done.stdout
    assert not (home / ".ray").exists(), "no token in the home directory"
    (summary,) = (tmp_path / "out").glob("toy/killer/*/summary.json")
    same_run(clsim.load(summary.parent), clsim.run(**toys(tmp_path / "alone", f"{mine}:Killer", threads=1)))


@pytest.mark.slow
def test_a_machine_that_is_lost_loses_no_run(tmp_path, mine, home, same_run, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0")):
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        first = cluster.add_node(num_cpus=1)
        configs = configs_of(tmp_path / "out", f"{mine}:Slow", threads=1, pause=1.0)
        found = []
        driver = threading.Thread(target=lambda: found.append(many.run_all(configs, Ray(cluster.address), quiet=True)))
        driver.start()
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob("worker-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        (lost,) = (int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*"))
        cluster.add_node(num_cpus=1)  # takes some seconds
        while not list((tmp_path / "out").rglob("state.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.remove_node(first, allow_graceful=False)
        driver.join()
        gone([lost])
    finally:
        cluster.shutdown()
    ((runs, failed),) = found
    assert failed == [] and len(list(tmp_path.glob("worker-*"))) == 2, "two processes worked on it"
    same_run(runs[0], clsim.run(**toys(tmp_path / "alone", f"{mine}:Slow", threads=1, pause=0)))


@pytest.mark.slow
def test_ctrl_c_ends_the_local_cluster(tmp_path, mine, home):
    line = [sys.executable, "-m", "clsim", "run", *words(toys(tmp_path / "out", f"{mine}:Slow")), "--ray"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    while not (found := list(tmp_path.glob("worker-*"))) and process.poll() is None:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "repeat the same command" in err, err
    gone([int(Path(path).name.removeprefix("worker-")) for path in found])
