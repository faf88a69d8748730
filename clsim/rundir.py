"""A run directory: the names of its files, reading its journal, its lock and its removal."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clsim.errors import RequestError

CONFIG = "config.toml"  # every option and field
ENVIRONMENT = "env.json"  # versions, code, device and data
EVENTS = "events.jsonl"  # the journal: every step and evaluation
CHECKPOINT = "checkpoint"  # a folder; see clsim.checkpoint
STATE = f"{CHECKPOINT}/state.json"  # if it exists, there is a checkpoint
MATRIX = "matrix.json"  # integer counts of every evaluation
CHECKSUMS = "checksums.json"  # of the other files; see clsim.checksums
SUMMARY = "summary.json"  # metrics and costs; written last: if it exists, the run has finished
LOCK = ".lock"
TEST_SECONDS = 0.05  # far longer than `in_use` holds a lock: a run that begins just then tries twice
WAY_OUT = "the run's command with --fresh makes it again"


class InUse(RequestError):
    """Another process works in a run directory."""


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Lock a run directory for this process. Raises InUse if another process uses it, RequestError for a file."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RequestError(f"the run needs the folder {directory}, but there is a file in its place") from error
    lock = directory / LOCK
    # some file systems lock only what may be written; a folder in the place of the file can be locked, too
    handle = os.open(lock, os.O_RDONLY if lock.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, in any way
        except BlockingIOError:
            time.sleep(TEST_SECONDS)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUse(f"another process is at work in {directory}") from error
        yield
    finally:
        os.close(handle)


def in_use(directory: Path) -> bool:
    """Whether a process works in a run directory. The lock is held for a moment only, to test it."""
    try:
        handle = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def clear(directory: Path) -> None:
    """Remove a run's files, but not the lock on its directory.

    What an interrupted removal leaves is never a finished run, and never a checkpoint without its other files.
    """
    for path in (directory / SUMMARY, directory / CHECKPOINT, *directory.iterdir()):
        if path.name == CHECKPOINT and path.is_dir() and not path.is_symlink():
            _remove(directory / STATE)
        if path.name != LOCK:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def below(paths: Iterable[Path]) -> list[Path]:
    """The run directories in and below the paths, each once. Raises RequestError for a path without any."""
    directories: dict[Path, Path] = {}
    for path in paths:
        real = path.resolve()
        walk = os.walk(path)  # links to folders are not followed, so only `path` itself may be one
        found = sorted(Path(folder) for folder, _, files in walk if SUMMARY in files or CONFIG in files)
        if not found:
            raise RequestError(f"no run in or below {path}" if path.exists() else f"no directory {path}")
        for directory in found:
            directories.setdefault(real / directory.relative_to(path), directory)
    return list(directories.values())


def read_records(path: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """The records of a journal, in order, or only those of some kinds; an incomplete last line is left out.

    Lines of other kinds are not parsed: most of a long journal are steps.

    Raises RequestError with the file's name if it is missing or if a complete line is not a record.
    """
    begins = tuple(f'{{"event": "{kind}"'.encode() for kind in kinds) or b""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and line.startswith(begins):
                    record: dict[str, Any] = json.loads(line)
                    if "event" not in record:
                        raise ValueError("a line without an event")
                    yield record
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{path} is missing or broken: {error!r}; {WAY_OUT}") from error
