"""Run directories: one process at a time, and removal."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from clsim.errors import RequestError

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory. Raises RequestError if one is at work there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process, however it ends
        except BlockingIOError as error:
            raise RequestError(f"another process is at work in {directory}") from error
        yield


def clear(directory: Path) -> None:
    """Remove a run, but not the lock that is held on its directory."""
    (directory / "summary.json").unlink(missing_ok=True)  # first: half a removal must not look like a finished run
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
