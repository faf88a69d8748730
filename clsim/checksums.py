"""Checksums of a finished run's files, in `checksums.json`: whoever reads a file can see that it is as the run left it.

The file has the size and the digest of every other file of the run directory, and a digest of itself. `summary.json`
says that there are checksums (`MARK`): runs of earlier versions have none, and are read as they are.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clsim.errors import RequestError
from clsim.rundir import CHECKPOINT, CHECKSUMS, EVENTS, LOCK, STATE, SUMMARY, WAY_OUT, below
from clsim.sealed import begun, digest, file_digest, sealed, unsealed

MARK = "checksums"  # key of summary.json; true if the run has checksums


def text_for(directory: Path, last: Mapping[str, str]) -> str:
    """The text of `checksums.json`; `last`: texts of files that are written after it, by name."""
    files = {
        path.relative_to(directory).as_posix(): [path.stat().st_size, file_digest(path)]
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in (LOCK, CHECKSUMS) and path.suffix != ".part"
    }
    for name, text in last.items():
        files[name] = [len(text.encode()), digest(text.encode())]
    return sealed({"files": files})


def _stored(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of each file, by name. Raises _Unreadable."""
    try:
        stored: dict[str, Any] = unsealed((directory / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        return {name: (int(size), str(code)) for name, (size, code) in stored.items()}
    except FileNotFoundError as error:
        raise _Unreadable(f"{CHECKSUMS} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Unreadable(f"{CHECKSUMS} cannot be read ({type(error).__name__})") from error


class _Unreadable(Exception):
    """There are no checksums to compare with; the text says why."""


def faults(directory: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with these files of a finished run that has checksums, one text a file; None: with all files."""
    try:
        entries = _stored(directory)
    except _Unreadable as error:
        return [str(error)]
    found = []
    for name in entries if names is None else names:
        if name not in entries:
            found.append(f"{name} is not among the files of the run")
            continue
        try:
            size = (directory / name).stat().st_size
            if size != entries[name][0]:
                found.append(f"{name} was changed after the run finished ({size} bytes, not {entries[name][0]})")
            elif file_digest(directory / name) != entries[name][1]:
                found.append(f"{name} was changed after the run finished")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def require(directory: Path, *names: str) -> None:
    """Raises RequestError if one of these files of a finished run is not as the run left it; see `faults`.

    A run without `checksums.json` passes: see `MARK`.
    """
    if (directory / CHECKSUMS).exists() and (found := faults(directory, names)):
        raise RequestError(f"{directory} is broken: {found[0]}; {WAY_OUT}")


def contents(directory: Path, *names: str) -> dict[str, bytes]:
    """The bytes of these files of a finished run, by name, each read once. Raises RequestError as `require` does.

    Files of a run without `checksums.json` are left out where they cannot be read.
    """
    found: dict[str, bytes] = {}
    for name in names:
        with contextlib.suppress(OSError):
            found[name] = (directory / name).read_bytes()
    with contextlib.suppress(_Unreadable):
        entries = _stored(directory)
        if all(name in found and entries.get(name) == (len(found[name]), digest(found[name])) for name in names):
            return found
    require(directory, *names)  # something is wrong: it says what
    return found


def unfinished_faults(directory: Path) -> list[str]:
    """What is wrong with the checkpoint of an unfinished run and with what its journal had then."""
    if not (directory / STATE).exists():
        return []
    try:
        state = unsealed((directory / STATE).read_text(encoding="utf-8"))
        tensors, tree = directory / CHECKPOINT / state["tensors"], state["tree"]
        if not tensors.is_file():
            return [f"{CHECKPOINT}/{tensors.name} is missing"]
        if state.get("tensors_digest") not in (None, file_digest(tensors)):
            return [f"{CHECKPOINT}/{tensors.name} was changed after it was written"]
        journal = begun(directory / EVENTS, tree["offset"])
        if journal is None or tree.get("journal") not in (None, journal.hexdigest()):
            return [f"{EVENTS} is missing, too short, or was changed"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{STATE} is broken ({type(error).__name__}: {error})"]
    return []


def verified(paths: Sequence[Path]) -> tuple[str, bool]:
    """The state of every run in and below the paths, one line each, and whether all are as they were left.

    Raises RequestError for a path without runs.
    """
    lines, broken = [], 0
    for directory in below(paths):
        finished, known = (directory / SUMMARY).exists(), (directory / CHECKSUMS).exists()
        found = faults(directory) if finished and known else [] if finished else unfinished_faults(directory)
        if finished and not known:
            text, found = _without(directory)
        else:
            text = "whole" if finished else "not finished, whole so far"
        broken += bool(found)
        lines.append(f"{directory}: {'BROKEN: ' + '; '.join(found) if found else text}")
    if broken:
        lines.append(f"{broken} of {len(lines)} broken; {WAY_OUT}")
    return "\n".join(lines), not broken


def _without(directory: Path) -> tuple[str, list[str]]:
    """The state of a finished run without `checksums.json`, and its faults."""
    try:
        marked = MARK in unsealed((directory / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return "", [f"{SUMMARY} cannot be read ({type(error).__name__})"]
    return "no checksums: made by an earlier version", [f"{CHECKSUMS} is missing"] if marked else []
