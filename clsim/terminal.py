"""Text for terminals that lack some characters: a run must not end because of the name of a class."""

import codecs
import io
from typing import TextIO

PLAIN = {"±": "+-", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that a stream lacks: `+-`, or `\\xe9` with the character's number."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in text), error.end


def forgiving(stream: TextIO) -> None:
    """Let a stream write all text: characters that it lacks are replaced, where they would raise UnicodeEncodeError."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        codecs.register_error("clsim", _plain)
        stream.reconfigure(errors="clsim")
