"""Entries of the cache: folders that appear whole, are checked when they are opened, and are made again if broken.

An entry is a folder with any files and `entry.json`, which is written last: it has what the maker wants to know later,
and the size and digests of every other file. Processes may share a cache; each entry appears with one rename.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clsim.errors import RequestError, writing
from clsim.sealed import file_digest

ABOUT = "entry.json"
LARGE = "images."  # names of large files begin with this: only their ends are read when an entry is opened
QUICK = 1 << 20  # bytes at each end
DAY = 24 * 3600  # seconds
TEMPORARY = re.compile(r"\.(tmp-[0-9a-f]{8}|[a-z0-9_]{8})$")  # the second form is that of older versions, without lock
BROKEN = ".broken"


def opened(folder: Path) -> dict[str, Any] | None:
    """What the maker of an entry stored in `entry.json`; None if there is no entry. See `usable`."""
    if not usable(folder, faults):
        return None
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text())["about"]
    except FileNotFoundError:  # removed meanwhile
        return None
    return about


def usable(folder: Path, check: Callable[[Path], list[str]]) -> bool:
    """Whether there is an entry in which `check` finds nothing wrong.

    A broken entry is renamed to `*.broken`, with a line on stderr, and then there is none; it is kept until another one
    breaks or the cache is cleared. Raises RequestError if it cannot be renamed. What killed processes left is removed.
    """
    if folder.parent.is_dir():
        remove_leftovers(folder.parent)
    if not folder.exists():
        return False
    if check(folder):
        with locked(folder.parent):  # another process may have replaced it meanwhile
            if folder.exists() and (found := check(folder)):
                _set_aside(folder, found[0])
                return False
    return True


def faults(folder: Path, whole: bool = False) -> list[str]:
    """What is wrong with an entry, one line a file: sizes and digests of both ends of each file, or of whole files."""
    try:
        stored = json.loads((folder / ABOUT).read_text())
        content = {"about": stored["about"], "files": stored["files"]}
        if stored["digest"] != _digest_of(content):
            return [f"{ABOUT} was changed"]
    except FileNotFoundError:
        return [f"{ABOUT} is missing"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return [f"{ABOUT} cannot be read ({type(error).__name__})"]
    found = []
    for name, (size, ends, digest) in stored["files"].items():
        try:
            actual = (folder / name).stat().st_size
            if actual != size:
                found.append(f"{name} has {actual} bytes, not {size}")
            elif _ends(folder / name) != ends or (
                (whole or not name.startswith(LARGE)) and file_digest(folder / name) != digest
            ):
                found.append(f"the bytes of {name} were changed")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


@contextlib.contextmanager
def new(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder to fill, and a dictionary for `entry.json`; at the end the folder becomes `folder`.

    If another process was faster, its entry stays. If the block raises, nothing stays.
    """
    about: dict[str, Any] = {}
    with made(folder, faults) as temporary:
        yield temporary, about
        files = {
            each.name: (each.stat().st_size, _ends(each), file_digest(each)) for each in sorted(temporary.iterdir())
        }
        content = {"about": about, "files": files}
        (temporary / ABOUT).write_text(json.dumps(content | {"digest": _digest_of(content)}))


@contextlib.contextmanager
def made(folder: Path, check: Callable[[Path], list[str]]) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end; nothing stays if the block raises.

    If another process was faster, its entry stays, unless `check` finds that it is broken. Raises WriteFailed.
    """
    parent = folder.parent
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with locked(parent):  # so that nobody takes the folder for a leftover before it is locked
        temporary = parent / f"{folder.name}.{_mark()}"
        with writing(parent):
            temporary.mkdir()  # not tempfile: its folders are closed to other users, whatever the umask is
        lock = os.open(temporary, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, in any way
    try:
        with writing(temporary):
            yield temporary
        with locked(parent):
            if folder.exists() and (broken := check(folder)):
                _set_aside(folder, broken[0])
            if not folder.exists():
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove(path: Path) -> bool:
    """Remove an entry, or anything else in its place; false if another process is just making it.

    It loses its name first, so that what an interrupted removal leaves is a leftover and no broken entry.
    """
    with locked(path.parent):
        if path.is_dir() and not path.is_symlink():
            if TEMPORARY.search(path.name) and not _is_leftover(path, old=True):
                return False
            renamed = path.with_name(f"{path.name.split('.')[0]}.{_mark()}")
            path.rename(renamed)
            shutil.rmtree(renamed)
        else:
            path.unlink(missing_ok=True)
    return True


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of processes that were killed."""
    with locked(parent):
        for path in list(parent.iterdir()):
            if TEMPORARY.search(path.name) and path.is_dir():
                with contextlib.suppress(OSError):  # it has just become an entry, or another user's
                    if _is_leftover(path, old=time.time() - path.stat().st_mtime > DAY):
                        shutil.rmtree(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time; for steps that take no longer than some reads. Where locks fail, nothing waits."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _set_aside(folder: Path, why: str) -> None:
    target = folder.with_name(folder.name + BROKEN)
    try:
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        folder.rename(target)
    except OSError as error:
        raise RequestError(f"{folder} in the cache is broken ({why}) and cannot be renamed: {error}") from error
    print(f"clsim: {folder} was broken ({why}); it is now {target.name}, and is made again", file=sys.stderr)


def _mark() -> str:
    """The end of the name of a temporary folder."""
    return f"tmp-{secrets.token_hex(4)}"


def _is_leftover(folder: Path, old: bool) -> bool:
    """Whether a temporary folder belongs to no process: nobody locks it, or, where locks fail, it is `old`."""
    if "tmp-" not in folder.name:
        return old
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return old
    finally:
        os.close(handle)
    return True


def _digest_of(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _ends(file: Path) -> str:
    """A digest of the first and last bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        digest.update(stream.read(QUICK))
        length = stream.seek(0, os.SEEK_END)
        stream.seek(max(QUICK, length - QUICK))
        digest.update(stream.read(QUICK))
    return digest.hexdigest()
