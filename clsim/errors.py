"""Errors that explain what is wrong with a request and how to correct it."""

import contextlib
import difflib
import errno
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


class RequestError(ValueError):
    """The request cannot be carried out: an unknown name, a wrong value, missing data.

    The command line prints its message in one line and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run has started and cannot continue, e.g. because the loss is not finite.

    The command line prints its message in one line and exits with status 1.
    """


class PeerLost(RunFailed):
    """Another of the processes that work on a run together has ended."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that is like `name`, at best but for case; empty if none is."""
    names = list(known)
    same = [each for each in names if each.casefold() == name.casefold()]
    return same[:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.55)


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """An error for an unknown name: it has the nearest known name and the list of names, each once."""
    names = sorted(set(known))
    near = nearest(name, names)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return RequestError(f"no {kind} {name!r}{hint}; there are: {', '.join(names) or 'none'}")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space on the disk, in the user's quota, or in one file


class WriteFailed(OSError):
    """A file cannot be written; a full disk has the size that is needed and the space that is free."""


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """While `path` is written, `size` bytes if known. Raises WriteFailed for a full disk or an error without a name."""
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        if error.errno not in FULL and error.filename is not None:
            raise
        what = str(error.strerror or error)
        if error.errno in FULL:
            with contextlib.suppress(OSError):
                needed = "" if size is None else f"{_amount(size)} are needed, "
                what += f" ({needed}{_amount(shutil.disk_usage(path.parent).free)} are free)"
        raise WriteFailed(error.errno, what, str(error.filename or path)) from error


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:.1f} KiB"
