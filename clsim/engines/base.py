"""What every engine takes and gives: planned runs, and what happens to them."""

import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clsim import rundir
from clsim.config import RunConfig
from clsim.errors import RequestError, RunFailed
from clsim.runner import run_one
from clsim.shared import Shared

TAIL = 12  # last lines of a failure that are reported
STARTS = 3  # of one run: the first, and two after its worker was killed
PATIENCE = 10.0  # seconds to wait for the process that worked in the run's directory before, and that is just ending


@dataclass(frozen=True)
class Planned:
    """A run that was checked, and its directory as this machine makes it."""

    config: RunConfig
    directory: Path
    finished: bool
    fresh: bool = False

    @property
    def name(self) -> str:
        """The scenario, strategy, backbone, seed and hash."""
        return "/".join(self.directory.parts[-3:])

    def clear(self) -> None:
        """Remove its files if it is to start afresh. Raises RequestError if another process uses the directory."""
        if self.fresh and self.directory.exists():
            with rundir.alone_in(self.directory):
                rundir.clear(self.directory)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its directory, or None and the last lines of the failure."""

    directory: Path | None
    lines: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened to the run `index`: it began (no outcome), it begins again (`why`), or it ended."""

    index: int
    outcome: Outcome | None = None
    why: str = ""


class Engine(Protocol):
    """Runs configurations somewhere."""

    threads: int  # of a run that does not set them

    def run(self, runs: Sequence[Planned]) -> Iterator[Event]:
        """Run all; yields what happens, when it happens. Closing the iterator ends everything that was started."""


def outcome(config: RunConfig, shared: Shared | None = None) -> Outcome:
    """Run a configuration in this process. A failure is returned, not raised."""
    try:
        return Outcome(_patiently(config, shared))
    except (RequestError, RunFailed, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Outcome(None, text)
    except (Exception, SystemExit):  # a mistake in a plug-in must not end the worker
        return Outcome(None, tail(traceback.format_exc()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _patiently(config: RunConfig, shared: Shared | None) -> Path:
    began = time.monotonic()
    while True:
        try:
            return run_one(config, shared=shared)
        except rundir.InUse:
            if time.monotonic() - began > PATIENCE:
                raise
            time.sleep(0.5)


def tail(text: str) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-TAIL:])


def has_begun(run: Planned, since: float) -> bool:
    """Whether the run began after `since` (seconds since 1970): it then writes its configuration."""
    try:
        return (run.directory / rundir.CONFIG).stat().st_mtime >= since
    except OSError:
        return False
