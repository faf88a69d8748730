"""The version of the code that made a result."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from clsim.errors import RequestError

PACKAGE = Path(__file__).parent
PLUGINS = ("scenarios", "strategies")  # inside the package where it is installed, next to it in a checkout


@cache
def code_digest() -> str:
    """12 hex digits over the names and texts of clsim's own files.

    Strategies and scenarios are left out: the hash of a run includes the texts of those that it uses.
    """
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    own = sorted(name for name in files if not name.startswith(tuple(f"{folder}/" for folder in PLUGINS)))
    return digest(text for name in own for text in (name, source(files[name])))


def digest(texts: Iterable[str]) -> str:
    """12 hex digits over texts in the given order."""
    found = hashlib.blake2b(digest_size=6)
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()


def source(path: Path) -> str:
    """A file's text with Unix newlines. Raises RequestError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
