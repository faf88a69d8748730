"""A run directory: the names of its files, reading its journal, its lock and its removal."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clsim.errors import RequestError

CONFIG = "config.toml"  # every option and field
ENVIRONMENT = "env.json"  # versions, code, device and data
EVENTS = "events.jsonl"  # the journal: every step and evaluation
CHECKPOINT = "checkpoint"  # a folder; see clsim.checkpoint
MATRIX = "matrix.json"  # integer counts of every evaluation
SUMMARY = "summary.json"  # metrics and costs; written last: if it exists, the run has finished
LOCK = ".lock"


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Lock a run directory for this process. Raises RequestError if another process uses it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, in any way
        except BlockingIOError as error:
            raise RequestError(f"another process is at work in {directory}") from error
        yield


def clear(directory: Path) -> None:
    """Remove a run's files, but not the lock on its directory."""
    (directory / SUMMARY).unlink(missing_ok=True)  # first: an incomplete removal must not look like a finished run
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal, in order; an incomplete last line is left out.

    Raises RequestError with the file's name if it is missing or if a complete line is not a record.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    record: dict[str, Any] = json.loads(line)
                    yield record
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is missing or broken: {error!r}") from error
