"""`clsim verify --evaluate`: the final learner of a finished run is evaluated again, and must give the same counts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clsim import checkpoint, checksums, rundir, snapshot
from clsim.config import RunConfig
from clsim.errors import RequestError, RunFailed
from clsim.events import State
from clsim.hardware import torch_settings
from clsim.results import Run, load
from clsim.runner import Job
from clsim.shared import Shared


def report(paths: Sequence[Path], say: Callable[[str], None] = print) -> bool:
    """Check every run in and below the paths, one line each; whether all give their recorded counts.

    A run whose files do not fit their checksums, that has not finished, or that cannot be evaluated here (its data,
    weights or device are not available) does not pass. Raises RequestError for a path without runs.
    """
    shared, passed = Shared(), True
    for directory in rundir.below(paths):
        text, fine = _checked(directory, shared)
        say(f"{directory}: {text}")
        passed = passed and fine
    return passed


def _checked(directory: Path, shared: Shared) -> tuple[str, bool]:
    """What there is to say about a run, and whether it gives its recorded counts."""
    if not (directory / rundir.SUMMARY).exists():
        return "not finished: there is no last evaluation to repeat", False
    found = checksums.faults(directory) if (directory / rundir.CHECKSUMS).exists() else []
    if found:
        return f"BROKEN: {'; '.join(found)}; {rundir.WAY_OUT}", False
    try:
        run = load(directory)
        job, row, total = counts(run, shared)
    except (RequestError, RunFailed) as error:
        return f"cannot be evaluated: {error}", False
    wrong = differences(run, row, total)
    text = f"DIFFERS: {'; '.join(wrong)}" if wrong else f"as recorded: {_correct(row, total)}"
    if job.hash != run.summary["config_hash"]:
        text += f" (plug-ins, weights or data have changed since: {job.hash}, not {run.summary['config_hash']})"
    return text, not wrong


def counts(run: Run, shared: Shared | None = None) -> tuple[Job, list[int | None], list[int]]:
    """The job of a finished run, and its last row of counts and totals, by its final learner on its test stream.

    Loaders, batches, precision, threads and device are those of the run's own evaluation. Raises RequestError if the
    data, the weights or the device are not available, or if the saved learner does not fit; RunFailed for logits that
    are not finite.
    """
    text = (run.directory / rundir.CONFIG).read_text(encoding="utf-8")
    config = RunConfig.from_toml(text, run.directory)
    with torch_settings(config.threads):
        job = Job.prepare(config, shared)
        learner, bank_tower = job.learner()
        parts = [*job.strategy.parts(), *job.parts]
        loop = job.loop(State(learner, job.benchmark.info, config.seed), bank_tower, parts)
        snapshot.restore(loop, parts, _saved(run.directory))
        row = loop.recount()
    return job, row, loop.state.total


def _saved(directory: Path) -> Any:
    try:
        return checkpoint.load(directory / rundir.CHECKPOINT)
    except FileNotFoundError as error:
        raise RequestError(f"{directory / rundir.STATE} is missing; {rundir.WAY_OUT}") from error


def differences(run: Run, row: Sequence[int | None], total: Sequence[int]) -> list[str]:
    """Where counts are not the recorded ones, one text for each test experience."""
    recorded = list(zip(run.matrix["correct"][-1], run.matrix["total"], strict=True))
    if len(recorded) != len(row):
        return [f"{len(row)} test experiences, {len(recorded)} recorded"]
    found = []
    for number, (now, then) in enumerate(zip(zip(row, total, strict=True), recorded, strict=True), start=1):
        if now != then:
            name = run.matrix["experiences"][number - 1]
            found.append(f"test experience {number} ({name}): {now[0]} of {now[1]} correct, recorded {_pair(then)}")
    return found


def _pair(counted: tuple[int | None, int]) -> str:
    return f"{counted[0]} of {counted[1]}"


def _correct(row: Sequence[int | None], total: Sequence[int]) -> str:
    """``57 of 72 images correct in 3 test experiences``."""
    tested = [(count, size) for count, size in zip(row, total, strict=True) if count is not None]
    correct, images = sum(count for count, _ in tested), sum(size for _, size in tested)
    return f"{correct:,} of {images:,} images correct in {len(tested)} test experiences"
