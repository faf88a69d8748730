"""Errors that explain what is wrong with a request and how to correct it."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request cannot be carried out: an unknown name, a wrong value, missing data.

    The command line prints its message in one line and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run has started and cannot continue, e.g. because the loss is not finite.

    The command line prints its message in one line and exits with status 1.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """An error for an unknown name: it has the nearest known name and the list of names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return RequestError(f"no {kind} {name!r}{hint}; there are: {', '.join(names) or 'none'}")
