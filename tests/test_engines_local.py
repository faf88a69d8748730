"""Many runs at the same time in worker processes: the same runs as alone, whatever happens to the processes."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, TOY

import clsim
from clsim import cli, config, runner, shared
from clsim.engines import local, many
from clsim.engines.base import outcome
from clsim.errors import RequestError, RunFailed

PLUGINS = '''
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from clsim.strategies.finetune import Finetune

@dataclass(kw_only=True)
class Killer(Finetune):
    """Fine-tuning that kills its own process in step `at`, `times` times."""

    at: int = 11
    times: int = 1

    def after_update(self, s):
        marks = list(Path(__file__).parent.glob(f"killed-{s.seed}-*"))
        if s.step == self.at and len(marks) < self.times:
            Path(__file__).with_name(f"killed-{s.seed}-{len(marks)}").touch()
            print("the last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

@dataclass(kw_only=True)
class Faulty(Finetune):
    """Fine-tuning that fails with a mistake of its own."""

    def after_update(self, s):
        if s.step == 4:
            1 / 0

@dataclass(kw_only=True)
class Slow(Finetune):
    """Fine-tuning whose steps take long."""

    pause: float = 0.2

    def after_update(self, s):
        (Path(__file__).parent / f"worker-{os.getpid()}").touch()
        time.sleep(self.pause)
'''


@pytest.fixture
def mine(tmp_path):
    """A file with the strategies of these tests."""
    (tmp_path / "mine.py").write_text(PLUGINS)
    return f"{tmp_path}/mine.py"


def toys(out, strategy, **given):
    """The options of small runs."""
    return (
        {"scenario": TOY, "backbone": "vit_nano", "precision": "fp32", "strategy": strategy, "out": out} | SMALL | given
    )


def configs_of(out, strategy, **given):
    asked = toys(out, strategy, **given)
    options = {name: asked.pop(name) for name in list(asked) if name in config.OPTIONS}
    return config.plan(options, asked)


def threads_of_two():
    return max(1, len(os.sched_getaffinity(0)) // 2)


def words(asked):
    """The same request on the command line."""
    return [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_runs_side_by_side_are_those_of_one_process_with_as_many_threads(tmp_path, same_run, capsys, monkeypatch):
    asked = toys(tmp_path / "many", "ncm,linear")
    runs = clsim.run(**asked, jobs=2, quiet=False)
    out = capsys.readouterr().out
    assert len(re.findall(r"^begins: toy/(ncm|linear)/vit_nano-s0-\w{8}$", out, re.M)) == 2
    assert "done 2 of 2: " in out and "average accuracy" in out
    assert multiprocessing.active_children() == []
    alone = clsim.run(**asked | {"out": tmp_path / "alone"}, threads=threads_of_two())
    for run, other in zip(runs, alone, strict=True):
        same_run(run, other)
        assert run.directory.name == other.directory.name, "the same hash"
        assert run.config | {"out": ""} == other.config | {"out": ""}
    with monkeypatch.context() as patch:
        patch.setattr(local.Local, "run", lambda *args: pytest.fail("all of them have finished"))
        assert [run.metrics for run in clsim.run(**asked, jobs=2)] == [run.metrics for run in runs]
    written = [(run.directory / "summary.json").stat().st_mtime_ns for run in runs]
    clsim.run(**asked, jobs=2, fresh=True)
    assert all((run.directory / "summary.json").stat().st_mtime_ns > t for run, t in zip(runs, written, strict=True))


def test_a_killed_worker_is_replaced_and_its_run_ends_bit_equal(tmp_path, mine, same_run, capsys):
    run = clsim.run(**toys(tmp_path / "a", f"{mine}:Killer"), jobs=2, quiet=False)
    out = capsys.readouterr().out
    assert re.search(r"killer/.*was killed by SIGKILL .*after these lines:\nthe last words\n; it is started again", out)
    assert len(list(tmp_path.glob("killed-0-*"))) == 1
    same_run(run, clsim.run(**toys(tmp_path / "b", f"{mine}:Killer", threads=threads_of_two())))


def test_failures_are_reported_with_their_last_lines_and_the_others_go_on(tmp_path, mine, capsys):
    asked = toys(tmp_path / "out", f"{mine}:Faulty,{mine}:Killer,linear,ncm") | {"threads": 1}
    status = cli.main(["run", *words(asked), "--jobs", "2", "killer.times=9", "--quiet"])
    said = capsys.readouterr()
    assert status == 1
    assert re.search(r"failed: \S+/faulty/.*after_update failed .*ZeroDivisionError: division by zero", said.err)
    assert re.search(r"failed: \S+/killer/\S+: its worker process was killed by SIGKILL.*, 3 times", said.err, re.S)
    assert len(list(tmp_path.glob("killed-0-*"))) == 3, "the first start, and two others"
    names = re.search(r"clsim: failed: 2 of 4 runs: (.*)", said.err)[1].split(", ")
    assert sorted(name.split("/")[1] for name in names) == ["faulty", "killer"]
    rows = [line.split()[:3] for line in said.out.splitlines() if " vit_nano " in line]
    assert sorted(rows) == [["linear", "vit_nano", "1"], ["ncm", "vit_nano", "1"]]
    with pytest.raises(RunFailed, match=r"1 of 2 runs failed\n.*faulty.*(\n.*)*ZeroDivisionError"):
        clsim.run(**toys(tmp_path / "out", f"{mine}:Faulty,ncm"), threads=1, jobs=2)


def test_mistakes_are_found_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(local.Local, "run", lambda *args: pytest.fail("there is a mistake"))
    with pytest.raises(RequestError, match="no effect on ncm"):
        clsim.run(**toys(tmp_path, "ncm", lr=0.5), jobs=2)
    with pytest.raises(RequestError, match="no such data directory"):
        clsim.run(**toys(tmp_path, "ncm", data_dir=tmp_path / "none"), jobs=2)
    assert not list(tmp_path.rglob("config.toml"))


def test_jobs_are_a_number_or_auto(tmp_path, monkeypatch):
    for wrong in ("0", 0, "-1", "two", "1.5", 2000):
        with pytest.raises(RequestError, match=r"jobs must be auto or 1 to 1024, not "):
            clsim.run(**toys(tmp_path, "ncm"), jobs=wrong)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda process: set(range(8)))
    configs = configs_of(tmp_path, "ncm", seed="0-19")

    def engine(jobs, runs=configs):
        return many.How(jobs).engine(runs)

    assert engine(1) is None
    assert (engine(3).workers, engine(3).threads) == (3, 2)
    assert (engine(16).workers, engine(16).threads) == (16, 1)
    assert (engine("auto").workers, engine("auto").threads) == (8, 1)
    few = engine(4, configs[:2])
    assert (few.workers, few.threads) == (2, 2), "the threads do not depend on how many runs there are"
    named = configs_of(tmp_path, "ncm", threads=5)
    assert many.with_threads(named, engine(4))[0].threads == 5
    assert many.with_threads(configs, engine(4))[0].threads == 2


def test_auto_has_no_more_workers_than_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(local, "_available_memory", lambda: 10 << 30)
    configs = configs_of(tmp_path, "ncm", seed="0-99")
    for backbone, workers in ((0, 10), (1 << 28, 3), (1 << 40, 1)):
        auto, given = many.How("auto").engine(configs), many.How(12).engine(configs)
        auto.fit(backbone)
        given.fit(backbone)
        assert (auto.workers, auto.threads, given.workers) == (workers, 1, 12)


def test_each_worker_sees_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    configs = configs_of(tmp_path, "ncm", seed="0-19")
    assert many.How("auto").engine(configs).gpus == ["0", "1", "2", "3"]
    assert many.How("auto").engine(configs).workers == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert many.How("auto").engine(configs).gpus == ["2", "3"]
    assert many.How("auto").engine(configs_of(tmp_path, "ncm", seed="0-19", device="cuda:1")).gpus == []


def test_a_process_keeps_the_last_backbones_within_a_bound(tmp_path, monkeypatch):
    loads = []
    load = shared.load_backbone
    monkeypatch.setattr(shared, "load_backbone", lambda name, *args: loads.append(name) or load(name, *args))
    nano, micro = (configs_of(tmp_path, "ncm", backbone=name)[0] for name in ("vit_nano", "vit_micro"))
    kept = shared.Shared()
    first, _ = kept.backbone(nano)
    second, _ = kept.backbone(nano)
    assert loads == ["vit_nano"] and first is not second, "each run has a copy that it may train"
    monkeypatch.setattr(shared, "KEPT", shared.size_of(load("vit_micro")))
    kept.backbone(micro)
    assert list(kept.backbones) == [shared._backbone_key(micro)]
    monkeypatch.setattr(shared, "KEPT", 1000)
    kept.backbone(nano)
    assert not kept.backbones, "one that is larger than the bound is not kept"
    assert loads == ["vit_nano", "vit_micro", "vit_nano"]


def test_a_process_keeps_few_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "MOST_BENCHMARKS", 3)
    kept = shared.Shared()
    for number in range(6):
        (asked,) = configs_of(tmp_path, "ncm", **{"scenario.order_seed": number})
        runner.Job.prepare(asked, kept, borrowed=True)
    assert [json.loads(key)[1]["order_seed"] for key in kept.benchmarks] == [3, 4, 5]


def test_what_goes_wrong_in_a_worker_is_text(tmp_path, mine):
    (faulty,) = configs_of(tmp_path, f"{mine}:Faulty")
    found = outcome(faulty)
    assert found.directory is None and found.lines.splitlines()[-1].endswith("ZeroDivisionError: division by zero")


def start(folder, *more):
    """`clsim run` in a process of its own, which Ctrl-C reaches."""
    line = [sys.executable, "-m", "clsim", "run", *words(toys(folder / "out", f"{folder}/mine.py:Slow", seed="0,1"))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*line, "--jobs", "2", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def workers_in(folder, process):
    """The ids of the worker processes, when there are two; an error if the command ends before."""
    deadline = time.monotonic() + 180
    while len(found := list(folder.glob("worker-*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return [int(path.name.removeprefix("worker-")) for path in found]


def gone(processes):
    """Seconds until none of the processes exists."""
    began = time.monotonic()
    while any(Path(f"/proc/{each}").exists() for each in processes):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_when_the_command_ends_its_workers_end_and_the_same_command_goes_on(how, tmp_path, mine, same_run):
    process = start(tmp_path)
    workers = workers_in(tmp_path, process)
    process.send_signal(how)
    took = gone(workers)
    _, err = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130 and "repeat the same command" in err and "Traceback" not in err
    assert took < (2 if how == signal.SIGINT else 10)
    again = start(tmp_path)
    _, err = again.communicate()
    assert again.returncode == 0, err
    runs = [clsim.load(summary.parent) for summary in sorted((tmp_path / "out").rglob("summary.json"))]
    alone = clsim.run(**toys(tmp_path / "b", f"{mine}:Slow", seed="0,1", pause=0), threads=threads_of_two())
    for run, other in zip(runs, alone, strict=True):
        same_run(run, other)


SCRIPT = """
import clsim
runs = clsim.run(scenario={toy!r}, strategy="ncm", backbone="vit_nano", seed="0,1", out={out!r}, jobs=2)
print("once", len(runs))
"""


@pytest.mark.slow
def test_a_program_without_a_guard_is_not_run_again_in_the_workers(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT.format(toy=TOY, out=str(tmp_path)))
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "once 2\n"
