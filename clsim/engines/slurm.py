"""SLURM: each run is a job, sent by submitit; without SLURM the same jobs run on this machine."""

import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clsim.config import RunConfig
from clsim.engines.base import Event, Outcome, Planned, has_begun, outcome, tail
from clsim.engines.ray import absolute
from clsim.errors import RequestError

POLL = 0.5  # seconds between two looks at the jobs of this machine; SLURM is asked by submitit, once a minute
LOGS = "slurm"  # the folder in --out for what submitit writes
HOURS = 24  # of a job, if no time is given
REQUEUES = 100  # after a job's time was over; preemptions are not counted
OWN = {"cpus_per_task": int, "gpus_per_node": int, "nodes": int, "mem_gb": float}  # settings that submitit names


class Job:
    """What a job does. It is sent again when SLURM takes its machine away, and goes on from the run's directory."""

    def __init__(self) -> None:
        self.sent_again = False

    def __call__(self, config: RunConfig) -> Outcome:
        """Run a configuration. Raises SystemExit if the job was sent again meanwhile."""
        found = outcome(config)
        if self.sent_again:  # submitit's own exit, inside the run, was taken for a failure of the run
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            sys.exit(LOCAL_REQUEUE_RETURN_CODE)  # without SLURM, submitit starts jobs with this status again
        return found

    def checkpoint(self, config: RunConfig) -> Any:
        """What submitit sends again after preemption or at the end of the time: the same run."""
        from submitit.helpers import DelayedSubmission

        self.sent_again = True
        return DelayedSubmission(Job(), config)


class Slurm:
    """Runs as jobs, `at_once` at the same time (None: as SLURM decides; without SLURM, one)."""

    def __init__(self, settings: Mapping[str, str], at_once: int | None = None) -> None:
        """`settings`: of `sbatch`, e.g. ``{"partition": "gpu", "time": "4:00:00"}``.

        Raises RequestError if submitit is not installed or a setting has no meaning.
        """
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise RequestError("--slurm needs submitit: pip install 'clsim[slurm]'") from error
        self.parameters = parameters(settings)
        self.threads: int = self.parameters.get("cpus_per_task", 1)
        self.at_once = at_once

    def run(self, runs: Sequence[Planned]) -> Iterator[Event]:
        """Run all; yields what happens, when it happens. Closing the iterator cancels the jobs."""
        import submitit

        if not runs:
            return
        has_slurm = shutil.which("srun") is not None
        folder = runs[0].config.out.absolute() / LOGS
        requeues = {"slurm_max_num_timeout" if has_slurm else "local_max_num_timeout": REQUEUES}
        executor = submitit.AutoExecutor(folder, cluster="slurm" if has_slurm else "local", **requeues)
        limit = {"slurm_array_parallelism": self.at_once} if self.at_once is not None else {}
        cores = {"cpus_per_task": runs[0].config.threads or self.threads}
        executor.update_parameters(**{"name": "clsim"} | cores | self.parameters | limit)
        waiting, jobs, began = deque(enumerate(runs)), dict[int, Any](), time.time()
        unseen = set(range(len(runs)))
        try:
            while waiting or jobs:
                free = len(waiting) if has_slurm else (self.at_once or 1) - len(jobs)
                sent = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                if sent:
                    for _, run in sent:
                        run.clear()
                    made = executor.map_array(Job(), [absolute(run.config) for _, run in sent])
                    jobs |= dict(zip([index for index, _ in sent], made, strict=True))
                for index in [index for index in sorted(unseen) if has_begun(runs[index], began)]:
                    unseen.remove(index)
                    yield Event(index)
                for index in [index for index, job in jobs.items() if job.done()]:
                    yield Event(index, _result(jobs.pop(index)))
                time.sleep(POLL)
        finally:
            for job in jobs.values():
                job.cancel(check=False)
            for job in jobs.values():
                _wait_for_local(job)


def _result(job: Any) -> Outcome:
    error = job.exception()
    if error is None:
        found: Outcome = job.result()
        return found
    return Outcome(None, tail(f"{error}\n{job.stderr() or ''}"))


def _wait_for_local(job: Any) -> None:
    """Jobs of this machine end before the command does; SLURM ends its own."""
    process = getattr(job, "_process", None)
    if process is not None:
        process.wait()


def parameters(settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings of ``sbatch`` as submitit names them. Raises RequestError for a value without meaning."""
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    found: dict[str, Any] = {"timeout_min": 60 * HOURS if "time" not in given else _minutes(given.pop("time"))}
    others: dict[str, Any] = {}
    for name, value in given.items():
        if name in OWN:
            try:
                found[name] = OWN[name](value)
            except ValueError as error:
                raise RequestError(f"--slurm {name}={value}: it must be a number") from error
        else:
            others[name] = value
    if others:
        known = _known()
        found |= {f"slurm_{name}": value for name, value in others.items() if name in known}
        rest = {name: value for name, value in others.items() if name not in known}
        found |= {"slurm_additional_parameters": rest} if rest else {}
    return found


def _known() -> set[str]:
    """The settings that submitit has names for; others are passed on to sbatch as they are."""
    from submitit.slurm.slurm import SlurmExecutor

    return SlurmExecutor._valid_parameters()


def _minutes(text: str) -> int:
    """SLURM's forms of a time -> minutes: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    numbers = rest.split(":")
    if not all(re.fullmatch(r"\d{1,6}", each) for each in [*numbers, *([days] if dash else [])]) or len(numbers) > 3:
        raise RequestError(f"--slurm time={text}: it must be minutes, hours:minutes:seconds or days-hours")
    parts = [*map(int, numbers)]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(days) * 1440 + hours * 60 + minutes + (seconds > 0)
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + (parts[2] > 0)
    return parts[0] + (len(parts) == 2 and parts[1] > 0)
