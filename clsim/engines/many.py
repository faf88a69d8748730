"""Many runs with an engine: checks before the first, what is shown meanwhile, and what has failed in the end."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clsim import runner
from clsim.config import RunConfig
from clsim.engines import local
from clsim.engines.base import Engine, Outcome, Planned
from clsim.engines.board import Board
from clsim.engines.ray import Ray
from clsim.engines.slurm import Slurm
from clsim.errors import RequestError, RunFailed
from clsim.results import Run, load
from clsim.shared import Shared, size_of


@dataclass(frozen=True)
class How:
    """Where runs are made. These options belong to a command, not to its runs: no file or hash of a run has them."""

    jobs: int | Literal["auto"] = 1
    devices: int = 1  # of one run, a process for each: see clsim.engines.devices
    ray: str | None = None  # address of a cluster; empty: a local one
    slurm: dict[str, str] | None = None  # settings of its jobs

    def engine(self, configs: Sequence[RunConfig]) -> Engine | None:
        """The engine; None for one run after the other. Raises RequestError if it is not installed."""
        if self.devices > 1 and (self.jobs != 1 or self.ray is not None or self.slurm is not None):
            raise RequestError("--devices divides one run, --jobs, --ray and --slurm make several: give one of them")
        if self.ray is not None and self.slurm is not None:
            raise RequestError("--ray and --slurm are two ways for the same: give one of them")
        if self.ray is None and self.slurm is None:
            return None if self.jobs == 1 else local.for_jobs(self.jobs, configs)
        if self.ray is not None:
            if self.jobs != 1:
                raise RequestError(
                    "--jobs: Ray runs as many at the same time as it has cores; --threads says how many each needs"
                )
            return Ray(self.ray)
        if self.jobs == "auto":
            raise RequestError("--jobs auto: with --slurm it is a number, or left out")
        assert self.slurm is not None
        return Slurm(self.slurm, None if self.jobs == 1 else self.jobs)


@dataclass(frozen=True)
class Failed:
    """A run that failed, with the last lines of its failure."""

    name: str
    lines: str


def run_all(
    configs: Sequence[RunConfig],
    engine: Engine,
    *,
    fresh: bool = False,
    quiet: bool = False,
) -> tuple[list[Run], list[Failed]]:
    """Run all that is not finished; returns the finished runs in the order of the request, and what has failed.

    Raises RequestError before the first run, as `runner.run_all` does.
    """
    shared = Shared()
    runs = _planned(configs, shared, fresh, quiet)
    if isinstance(engine, local.Local):
        engine.fit(max(map(size_of, shared.backbones.values())))
    del shared
    found: dict[Path, Run] = {run.directory: load(run.directory) for run in runs if run.finished}
    left, failed = [run for run in runs if not run.finished], []
    board = Board(left, len(found), quiet)
    if left:
        with board, contextlib.closing(engine.run(left)) as events:  # type: ignore[type-var]
            for event in events:
                if event.outcome is None:
                    board.began(event.index, event.why)
                    continue
                run = left[event.index]
                made, lines = _loaded(event.outcome)
                board.ended(event.index, made, lines)
                if made is None:
                    failed.append(Failed(run.name, lines))
                else:
                    found[run.directory] = made
    return [found[run.directory] for run in runs if run.directory in found], failed


def finished(configs: Sequence[RunConfig], engine: Engine, fresh: bool, quiet: bool) -> list[Run]:
    """All runs, finished. Raises RunFailed, after the others are finished, if some have failed."""
    runs, failed = run_all(configs, engine, fresh=fresh, quiet=quiet)
    if failed:
        lines = [f"{each.name}: {each.lines}" for each in failed]
        raise RunFailed("\n".join([f"{len(failed)} of {len(runs) + len(failed)} runs failed", *lines]))
    return runs


def with_threads(configs: Sequence[RunConfig], engine: Engine) -> list[RunConfig]:
    """The configurations with the engine's number of threads, where they have none.

    So they are the runs of a command with that number for --threads: the same hashes, and the same bits.
    """
    return [replace(each, threads=engine.threads) if each.threads is None else each for each in configs]


def _loaded(outcome: Outcome) -> tuple[Run | None, str]:
    if outcome.directory is None:
        return None, outcome.lines
    try:
        return load(outcome.directory), ""
    except RequestError as error:  # broken, or removed meanwhile
        return None, str(error)


def _planned(configs: Sequence[RunConfig], shared: Shared, fresh: bool, quiet: bool) -> list[Planned]:
    """All runs, checked, each directory once."""
    runner.check(runner.first_of_each(configs), shared, configs)
    found: dict[Path, Planned] = {}
    for config in configs:
        job = runner.Job.prepare(config, shared, borrowed=True)
        if not quiet:
            shared.tell(job)
        found.setdefault(job.directory, Planned(config, job.directory, job.finished and not fresh, fresh))
    return list(found.values())
