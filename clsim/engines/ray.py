"""Ray: runs on the machines of a cluster, which share the folder of the runs."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from clsim.config import RunConfig
from clsim.engines.base import STARTS, Event, Outcome, Planned, has_begun, outcome, tail
from clsim.errors import RequestError
from clsim.shared import Shared

POLL = 0.5  # seconds between two looks at which runs have begun


class Ray:
    """Each run is a task. One whose process or machine is lost is run again, and goes on from its directory."""

    threads = 1  # of a run that does not set them, whatever machine it reaches

    def __init__(self, address: str) -> None:
        """`address`: of a cluster, as `ray.init` takes it; empty: a new one on this machine.

        Raises RequestError if Ray is not installed or the address is none.
        """
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise RequestError("--ray needs Ray: pip install 'clsim[ray]'") from error
        if "=" in address:
            raise RequestError(f"--ray takes an address, not {address!r}: write fields before it, or --ray=auto")
        self.address = address

    def run(self, runs: Sequence[Planned]) -> Iterator[Event]:
        """Run all; yields what happens, when it happens. Closing the iterator cancels what is left."""
        import ray

        mine = not ray.is_initialized()
        if mine:
            _connect(self.address)
        left: dict[Any, int] = {}
        try:
            has_gpus = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
            for index, run in enumerate(runs):
                try:
                    run.clear()
                except RequestError as error:
                    yield Event(index, Outcome(None, str(error)))
                    continue
                config = absolute(run.config)
                gpus = int(config.device.startswith("cuda") or (config.device == "auto" and has_gpus))
                task = ray.remote(num_cpus=config.threads or 1, num_gpus=gpus, max_retries=STARTS - 1)(_task)
                left[task.options(name=run.name).remote(config)] = index
            yield from _results(left, runs)
        finally:
            if mine:
                ray.shutdown()  # a cluster of its own ends; of another one, the tasks of this process are cancelled
            else:
                for each in left:
                    ray.cancel(each, force=True)


def _results(left: dict[Any, int], runs: Sequence[Planned]) -> Iterator[Event]:
    """What happens until none is left."""
    import ray

    started, waiting = time.time(), set(left.values())
    while left:
        ready, _ = ray.wait(list(left), num_returns=1, timeout=POLL)
        for index in sorted(waiting):
            if has_begun(runs[index], started):
                waiting.remove(index)
                yield Event(index)
        for each in ready:
            index = left.pop(each)
            waiting.discard(index)
            try:
                found: Outcome = ray.get(each)
            except ray.exceptions.RayError as error:  # its process or machine was lost as often as it was started
                found = Outcome(None, tail(str(error)))
            yield Event(index, found)


def _connect(address: str) -> None:
    """Join a cluster, or start one on this machine that leaves no files of its own in the home directory."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do from its next version on
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        with _understood(address):
            ray.init(address=address, **settings)
        return
    # a new cluster asks for a token; without one in the environment Ray would write it into the home directory
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(address="local", include_dashboard=False, **settings)


@contextlib.contextmanager
def _understood(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(f"--ray {address}: {' '.join(str(error).split())}") from error


def absolute(config: RunConfig) -> RunConfig:
    """The configuration for a process with another working directory."""
    data = None if config.data_dir is None else Path(config.data_dir).absolute()
    return replace(config, out=config.out.absolute(), data_dir=data)


# in Ray's processes


@cache
def _shared() -> Shared:
    """What a process keeps between its runs."""
    return Shared()


def _task(config: RunConfig) -> Outcome:
    return outcome(config, _shared())
