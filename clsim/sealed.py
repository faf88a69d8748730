"""Sealed texts: JSON with a digest of itself, so that a reader can see that it is as it was written."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = '{"digest": "'  # how a sealed text begins
PART = 1 << 20  # bytes that are read at once
CHANGED = "it was changed after it was written"


def sealed(content: Mapping[str, Any]) -> str:
    """The content as JSON, with a digest of the rest of the text as its first key."""
    rest = json.dumps(content)[1:]
    return f'{SEAL}{digest(rest.encode())}", {rest}'


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` wrote, or JSON without a digest. Raises ValueError if it was changed or is no JSON object."""
    content = parsed(text)
    if text.startswith(SEAL):
        rest = text[text.index(",") + 2 :]
        if content.pop("digest") != digest(rest.encode()):
            raise ValueError(CHANGED)
    return content


def packed(content: Mapping[str, Any]) -> bytes:
    """The sealed content, compressed."""
    return zlib.compress(sealed(content).encode(), 1)


def unpacked(data: bytes) -> dict[str, Any]:
    """What `packed` wrote. Raises ValueError for anything else."""
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(data).decode()
    except zlib.error as error:
        raise ValueError(CHANGED) from error
    if not reader.eof or reader.unused_data or not text.startswith(SEAL):  # cut, or with something behind it
        raise ValueError(CHANGED)
    return unsealed(text)


def parsed(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError if the text is anything else."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def digest(data: bytes) -> str:
    """32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def begun(path: Path, count: int) -> "hashlib.blake2b | None":
    """The hash after the first `count` bytes of a file; None if they are not there."""
    found = hashlib.blake2b(digest_size=16)
    if count == 0:
        return found
    try:
        with path.open("rb") as stream:
            while part := stream.read(min(PART, count - stream.tell())):
                found.update(part)
            return found if stream.tell() == count else None
    except OSError:
        return None


def file_digest(path: Path) -> str:
    """32 hex digits over a file's contents."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
