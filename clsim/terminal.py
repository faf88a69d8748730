"""Text for terminals: progress of long work, and a way round characters that a terminal lacks."""

import codecs
import io
import sys
from collections.abc import Iterable
from typing import TextIO, TypeVar

T = TypeVar("T")

PLAIN = {"±": "+-", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that a stream lacks: `+-`, or `\\xe9` with the character's number."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in text), error.end


def forgiving(stream: TextIO) -> None:
    """Let a stream write all text: characters that it lacks are replaced, where they would raise UnicodeEncodeError.

    So a run does not end because of the name of a class.
    """
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        codecs.register_error("clsim", _plain)
        stream.reconfigure(errors="clsim")


def counted(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """The items; if they take more than a second and standard error is a terminal, it shows how many are done."""
    from tqdm import tqdm  # late: a fraction of a second, and only to make tables

    shown: Iterable[T] = tqdm(
        items, desc=what, total=total, file=sys.stderr, disable=None, delay=1.0, leave=False, ascii=True
    )
    return shown
