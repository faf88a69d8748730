"""Worker processes on this machine, each for many runs.

The workers are forked from a server process that has imported torch and has never used it. So torch is imported once
for all of them, and no thread of this process is there when they are forked. (Measured on 2 cores: a worker that is
started in this way takes 0.1 s and 20 MiB of its own, an interpreter of its own some seconds and 430 MiB.)
"""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import types
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, reduction
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from clsim.config import RunConfig
from clsim.engines.base import STARTS, Event, Outcome, Planned, outcome, tail
from clsim.errors import RequestError
from clsim.hardware import best_device
from clsim.shared import Shared

EACH = 1 << 30  # bytes that a worker needs at most, and
COPIES = 8  # copies of its backbone: kept, trained, gradients, optimizer, activations
PRELOADED = ["clsim.engines.forked"]
# libraries that only some runs need; imported for the workers if this process has them
AND_IF_NEEDED = ["sklearn.datasets", "sklearn.cluster", "open_clip", "timm", "pyarrow.parquet", "PIL.Image"]


class Local:
    """`workers` processes; a run whose process is killed continues in another one."""

    def __init__(self, workers: int, threads: int, gpus: Sequence[str] = (), bounded: bool = False) -> None:
        """`gpus`: names as in CUDA_VISIBLE_DEVICES; each worker sees one of them, in turn.

        `bounded`: whether there may be fewer workers because of memory.
        """
        self.workers = workers
        self.threads = threads
        self.gpus = gpus
        self.bounded = bounded

    def fit(self, backbone: int) -> None:
        """Have no more workers than fit into memory, where the largest backbone has so many bytes."""
        available = _available_memory()
        if self.bounded and available is not None:
            self.workers = max(1, min(self.workers, available // (EACH + COPIES * backbone)))

    def run(self, runs: Sequence[Planned]) -> Iterator[Event]:
        """Run all; yields what happens, when it happens. Closing the iterator kills the workers."""
        waiting, starts = deque(range(len(runs))), Counter[int]()
        workers: list[_Worker] = []
        try:
            while waiting or any(worker.index is not None for worker in workers):
                yield from self._begin(runs, waiting, starts, workers)
                for worker in _ready(workers):
                    index, found = worker.index, worker.outcome()
                    assert index is not None
                    if found is None:
                        workers.remove(worker)
                        why = worker.died()
                        if starts[index] < STARTS:
                            waiting.appendleft(index)
                            yield Event(index, why=why)
                            continue
                        found = Outcome(None, f"{why}, {STARTS} times")
                    yield Event(index, found)
        finally:
            for worker in workers:
                worker.end()

    def _begin(
        self, runs: Sequence[Planned], waiting: deque[int], starts: Counter[int], workers: list["_Worker"]
    ) -> Iterator[Event]:
        """Give every idle worker a run; workers are made when they are needed."""
        while waiting:
            idle = next((worker for worker in workers if worker.index is None), None)
            if idle is None and len(workers) == self.workers:
                return
            if idle is None:
                used = {worker.slot for worker in workers}
                slot = next(number for number in range(self.workers) if number not in used)
                gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
                idle = _Worker(slot, gpu)
                workers.append(idle)
            index = waiting.popleft()
            starts[index] += 1
            try:
                if starts[index] == 1:
                    runs[index].clear()
            except RequestError as error:
                yield Event(index, Outcome(None, str(error)))
                continue
            idle.give(index, runs[index])
            yield Event(index)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_jobs(jobs: int | Literal["auto"], configs: Sequence[RunConfig]) -> Local:
    """`jobs` workers that share this machine's cores. "auto": one for each GPU or core, as far as memory allows.

    The number of threads depends on `jobs` and the machine only, so that a command that is repeated names the same
    runs, whatever is left of them.
    """
    gpus = _visible_gpus() if all(_on_any_gpu(config.device) for config in configs) else []
    wanted = (len(gpus) or cores()) if jobs == "auto" else jobs
    return Local(min(wanted, len(configs)), max(1, cores() // wanted), gpus, bounded=jobs == "auto")


def _on_any_gpu(device: str) -> bool:
    return device == "cuda" or (device == "auto" and best_device() == "cuda")


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(map(str, range(torch.cuda.device_count()))) if given is None else given.split(",")


def _available_memory() -> int | None:
    """Bytes that processes may still take, as far as Linux or the limit of a container say."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))
    return min(found, default=None)


class _Worker:
    """A process, and the run that it works on."""

    def __init__(self, slot: int, environment: Mapping[str, str]) -> None:
        context = server()
        self.slot = slot
        self.index: int | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)  # whoever reads it moves no place of writing
        self._connection, theirs = context.Pipe()
        arguments = (theirs, Passed(self._log.fileno()), {**os.environ, **environment})
        self._process = context.Process(target=_serve, args=arguments, name=f"clsim worker {slot}")
        with without_main():
            self._process.start()
        theirs.close()

    def give(self, index: int, run: Planned) -> None:
        """Begin a run."""
        self.index = index
        self._log.truncate(0)
        with contextlib.suppress(OSError):  # it was killed while it waited; its outcome will be None
            self._connection.send(run.config)

    def outcome(self) -> Outcome | None:
        """How its run ended; None if the process ended instead. What the run wrote is passed on to stderr."""
        try:
            found: Outcome = self._connection.recv()
        except (EOFError, OSError):
            return None
        self.index = None
        if written := self._written():
            print(written, file=sys.stderr)
        return found

    def handles(self) -> list[Any]:
        """What becomes ready when the run or the process ends."""
        return [self._connection, self._process.sentinel]

    def died(self) -> str:
        """End what is left of it, and return how it ended, with its last lines."""
        self._process.join(1.0)
        written = self._written()
        self.end()
        why = f"its worker process {ending(self._process.exitcode or 0)}"
        return f"{why} after these lines:\n{written}\n" if written else why

    def end(self) -> None:
        """Kill it, with its own children, and wait for it."""
        kill(self._process)
        self._log.close()
        self._connection.close()

    def _written(self) -> str:
        length = os.fstat(self._log.fileno()).st_size
        return tail(os.pread(self._log.fileno(), length, 0).decode(errors="replace"))


def server() -> ForkServerContext:
    """The server from which processes are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED + [name for name in AND_IF_NEEDED if name in sys.modules])
    return context


class Passed:
    """An open file that is given to a worker."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.file),)


def _received(file: Any) -> int:
    number: int = file.detach()
    return number


def kill(process: BaseProcess) -> None:
    """Kill a process that was started, with its own children, and wait for it."""
    assert process.pid is not None
    with contextlib.suppress(OSError):  # it has no group of its own yet, or has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def ending(code: int) -> str:
    """How a process ended, from its exit code."""
    if code >= 0:
        return f"ended with status {code}"
    names = {each.value: each.name for each in signal.Signals}
    hint = " (so the kernel ends processes when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by {names.get(-code, f'signal {-code}')}{hint}"


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """The busy workers whose run or process has ended; waits for the first."""
    handles = {handle: worker for worker in workers if worker.index is not None for handle in worker.handles()}
    return list(dict.fromkeys(handles[handle] for handle in connection.wait(list(handles)))) if handles else []


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Keep a new process from importing the user's program again, which would run all of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# in the worker


def _serve(driver: "connection.Connection[Any, Any]", log: int, environment: Mapping[str, str]) -> None:
    """Run what the driver sends, until it ends."""
    settle({1: log, 2: log}, environment)
    shared = Shared()
    with contextlib.suppress(EOFError, OSError):
        while True:
            driver.send(outcome(driver.recv(), shared))


def settle(streams: Mapping[int, int], environment: Mapping[str, str]) -> None:
    """Put files in the place of this process's streams, set its environment, and end it when its driver ends."""
    os.setpgrp()  # Ctrl-C goes to the driver alone, which ends this process with all its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream, file in streams.items():
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    """End this process, and its children, as soon as the driver has ended in any way."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os.killpg(0, signal.SIGKILL)
