"""One run on several devices of this machine: clsim starts a process for each; together they are a World."""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import torch

from clsim import parallel, runner
from clsim.config import RunConfig
from clsim.engines import local
from clsim.engines.base import tail
from clsim.errors import PeerLost, RequestError, RunFailed
from clsim.recorders import console
from clsim.results import Run, load
from clsim.shared import Shared

PATIENCE = 2.0  # seconds in which the reason must show why a process has lost another one


class Answer(NamedTuple):
    """How the work of one process ended: what it raised, or nothing."""

    kind: type[Exception] | None = None
    text: str = ""


def run_all(configs: Sequence[RunConfig], count: int, *, fresh: bool = False, quiet: bool = False) -> list[Run]:
    """Run one configuration after the other, each on `count` processes; the first one writes and prints.

    Raises RequestError or RunFailed if one of the processes does, or if it is killed; then all are ended.
    """
    shared = Shared()
    jobs = [runner.Job.prepare(config, shared, borrowed=True) for config in configs]
    directories = [job.directory for job in jobs]
    finished = not fresh and all(job.finished for job in jobs)
    del shared, jobs
    if not finished:
        _work(configs, count, fresh, quiet)
    runs = list(map(load, directories))
    if finished and not quiet:
        for run in runs:
            console.report(run)
    return runs


def _work(configs: Sequence[RunConfig], count: int, fresh: bool, quiet: bool) -> None:
    """Start the processes and wait for them."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="clsim-") as folder, contextlib.ExitStack() as started:
        place = f"file://{folder}/meet"
        members = []
        for rank in range(count):
            members.append(_Member(rank, count, place, (configs, fresh, quiet)))
            started.callback(members[-1].end)
        lost: Answer | None = None
        for answer in _answers(members):
            if answer.kind is PeerLost:
                lost = answer  # the other process, or this machine's kernel, says why
            elif answer.kind is not None:
                raise answer.kind(answer.text)
        if lost is not None:
            raise RunFailed(lost.text)


def _answers(members: Sequence["_Member"]) -> Iterator[Answer]:
    """How each process ends, in the order in which they end. After the first error the others have PATIENCE."""
    left, timeout = {member.connection: member for member in members}, None
    while left:
        ready = connection.wait(list(left), timeout)
        if not ready:
            return
        for each in ready:
            answer = left.pop(each).answer()  # type: ignore[call-overload]
            timeout = timeout if answer.kind is None else PATIENCE
            yield answer


class _Member:
    """One of the processes, seen from outside."""

    def __init__(self, rank: int, count: int, place: str, work: tuple[Sequence[RunConfig], bool, bool]) -> None:
        self.name = f"process {rank + 1} of {count}"
        context = local.server()
        self.connection, theirs = context.Pipe()
        streams = {stream: local.Passed(stream) for stream in ((1, 2) if rank == 0 else (2,))}
        threads = max(1, local.cores() // count)
        arguments = (theirs, rank, count, place, streams, dict(os.environ), threads, *work)
        self.process = context.Process(target=_serve, args=arguments, name=f"clsim {self.name}")
        with local.without_main():
            self.process.start()
        theirs.close()

    def answer(self) -> Answer:
        """What it said last, or how it was ended."""
        try:
            found: Answer = self.connection.recv()
            return found
        except (EOFError, OSError):
            self.process.join(1.0)
            how = local.ending(self.process.exitcode or 0)
            return Answer(RunFailed, f"{self.name} {how}; repeat the command to resume")

    def end(self) -> None:
        """Kill it, with its own children, and wait for it."""
        local.kill(self.process)
        self.connection.close()


# in the process


def _serve(
    driver: "connection.Connection[Any, Any]",
    rank: int,
    count: int,
    place: str,
    streams: Mapping[int, int],
    environment: Mapping[str, str],
    threads: int,
    configs: Sequence[RunConfig],
    fresh: bool,
    quiet: bool,
) -> None:
    """Work on the runs with the other processes, and tell the driver how it ended."""
    local.settle(streams, environment)
    torch.set_num_threads(threads)  # of runs that do not set them
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    answer = Answer()
    try:
        with parallel.joined(rank, count, place):
            runner.run_all(configs, fresh=fresh, quiet=quiet or rank > 0)
    except PeerLost as error:
        answer = Answer(PeerLost, str(error))
    except RequestError as error:
        answer = Answer(RequestError, str(error))
    except (RunFailed, OSError, MemoryError) as error:
        answer = Answer(RunFailed, str(error) or type(error).__name__)
    except (Exception, SystemExit):  # a mistake in a plug-in
        answer = Answer(RunFailed, tail(traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    driver.send(answer)
