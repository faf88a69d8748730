"""Errors that name what was wrong with a request, and how to put it right."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request cannot be met as it stands: an unknown name, a wrong value, data that is not there.

    The command line prints its message in one line and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that began and cannot go on, e.g. because the loss is not finite.

    The command line prints its message in one line and exits with status 1.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """An error for a name that does not exist: the nearest one, and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return RequestError(f"no {kind} {name!r}{hint}; there are: {', '.join(names) or 'none'}")
