"""WebDataset shards: tar files in which 000000.jpg and 000000.cls (or .json) are one sample. Nothing is extracted."""

import gzip
import json
import tarfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clsim.data.columns import DOMAIN, LABEL, usual
from clsim.data.folders import image_suffixes, is_litter
from clsim.data.labels import Values, listed_values
from clsim.data.raw import Raw, Wanted
from clsim.data.shards import SplitFiles
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK = 512
LARGEST_TEXT = 1 << 20  # bytes of a .cls or .json
LABELS = ("cls", "label", "class", "cls.txt", "label.txt")  # extensions


class _Member(NamedTuple):
    start: int
    size: int


class _Shard(NamedTuple):
    """The samples of a file."""

    file: Path
    images: list[_Member]
    names: list[str]
    labels: list[Any]
    domains: list[Any]
    others: list[str]  # members that are no files, and samples with neither image nor label


def read_tars(groups: Sequence[SplitFiles], wanted: Wanted) -> list[Raw]:
    """The splits of files. `wanted.image` may be an extension, `wanted.label` an extension or a key of .json.

    Raises RequestError that names the file and the sample.
    """
    return [_split(split, files, wanted) for split, files in groups]


def _split(split: str, files: Sequence[Path], wanted: Wanted) -> Raw:
    every = [_shard(file, wanted) for file in files]
    shards = [shard for shard in every if shard.images]
    if not shards:
        raise RequestError(
            f"{shown(files[0])} has no images with labels; a sample is 000000.jpg and 000000.cls or .json"
        )
    with_domains = any(domain is not None for shard in shards for domain in shard.domains)

    def values(what: str, lists: Sequence[list[Any]]) -> list[tuple[Path, Values]]:
        plain = all(isinstance(value, str) for each in lists for value in each)
        pairs = zip(shards, lists, strict=True)
        return [(shard.file, listed_values(f"{shown(shard.file)}: {what}", each, plain=plain)) for shard, each in pairs]

    others = tuple(f"{shown(shard.file)}: {name}" for shard in shards for name in shard.others)
    return Raw(
        split=split,
        read=_Reader(shards).read,
        names=[name for shard in shards for name in shard.names],
        labels=values("the label", [shard.labels for shard in shards]),
        what="the label",
        files=files,
        settings=(wanted.image, wanted.label, wanted.domain),
        domains=values("the domain", [shard.domains for shard in shards]) if with_domains else None,
        left_out={"not a sample's image or label": others} if others else {},
        notes=tuple(f"{shown(shard.file)} has no samples" for shard in every if not shard.images),
    )


def _opened(file: Path) -> BinaryIO:
    require_file(file)
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(file) if packed else file.open("rb")  # type: ignore[return-value]


def _shard(file: Path, wanted: Wanted) -> _Shard:
    """The samples of a file, with labels. Raises RequestError if it is damaged, or for a sample without a label."""
    try:
        with _opened(file) as stream:
            samples, others = _members(file, stream)
            shard = _Shard(file, [], [], [], [], others)
            for key, sample in samples.items():
                _add(shard, key, sample, stream, wanted)
            return shard
    except RequestError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, MemoryError) as error:
        raise RequestError(
            f"{shown(file)} cannot be read as a tar file; it is truncated or damaged ({error})"
        ) from error


def _members(file: Path, stream: BinaryIO) -> tuple[dict[str, dict[str, _Member]], list[str]]:
    """Sample -> extension -> where its file is; and the names of members that are not files of a sample."""
    samples: dict[str, dict[str, _Member]] = {}
    others: list[str] = []
    end = 0
    for member in tarfile.open(fileobj=stream, mode="r:"):  # noqa: SIM115  (`stream` is closed by who opened it)
        end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isfile() else 0)
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isdir():
            continue
        if not member.isfile() or member.issparse() or not stem or not extension or is_litter(name):
            others.append(member.name)
            continue
        sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
        if extension.lower() in sample:
            raise RequestError(f"{shown(file)} has {member.name!r} twice")
        sample[extension.lower()] = _Member(member.offset_data, member.size)
    stream.seek(end)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise RequestError(f"{shown(file)} is truncated: its end is missing")
    while stream.read(1 << 20):  # to the end, so that the checksum of a .gz file is compared
        pass
    return samples, others


def _add(shard: _Shard, key: str, sample: Mapping[str, _Member], stream: BinaryIO, wanted: Wanted) -> None:
    """Put a sample into the shard."""
    where = f"{shown(shard.file)}: sample {key!r}"
    suffixes = image_suffixes()
    images = [
        name for name in sample if name == wanted.image or (not wanted.image and Path("x." + name).suffix in suffixes)
    ]
    texts = {name: at for name, at in sample.items() if name not in images and f".{name}" not in suffixes}
    about: dict[str, Any] = {}  # what the sample's texts and its .json say
    for name, at in texts.items():
        if name == "json" or name in (*LABELS, wanted.label, wanted.domain):
            content = _text(where, stream, name, at)
            about |= _object(where, content) if name == "json" else {name: content}
    label = _value(where, about, wanted.label or next((name for name in LABELS if name in texts), ""), LABEL)
    if not images and label is None:
        shard.others.append(key)
        return
    if len(images) != 1 or label is None:
        lacks = "no label (.cls, or a label in .json)" if label is None else f"{len(images) or 'no'} images"
        raise RequestError(f"{where} has {lacks}; it has: {', '.join(sample)}")
    shard.images.append(sample[images[0]])
    shard.names.append(f"{key}.{images[0]}")
    shard.labels.append(label)
    shard.domains.append(_value(where, about, wanted.domain, DOMAIN))


def _value(where: str, about: Mapping[str, Any], wanted: str, kind: Sequence[str]) -> Any:
    """The value of the wanted name, or else of one of the usual names; None if there is none."""
    if wanted:
        return about.get(wanted)
    found = usual(about, kind)
    if len(found) > 1:
        raise RequestError(
            f"{where} has several values that may be meant: {', '.join(found)}; name one with scenario.label"
        )
    return about[found[0]] if found else None


def _text(where: str, stream: BinaryIO, name: str, at: _Member) -> str:
    if at.size > LARGEST_TEXT:
        raise RequestError(f"{where}: .{name} has {at.size} bytes, and is no label")
    stream.seek(at.start)
    try:
        return stream.read(at.size).decode().strip()
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: .{name} is not UTF-8") from error


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: .json is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise RequestError(f"{where}: .json is no object")
    return found


class _Reader:
    """The images of several files; fastest in their order."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self.shards = shards
        self.first = np.cumsum([0, *(len(shard.images) for shard in shards)])
        self.lock = threading.Lock()
        self.open: tuple[int, BinaryIO] | None = None

    def read(self, i: int) -> bytes:
        """The bytes of image i. Raises RequestError if the file was cut meanwhile."""
        number = int(np.searchsorted(self.first, i, side="right")) - 1
        shard = self.shards[number]
        at = shard.images[i - int(self.first[number])]
        with self.lock:
            if self.open is None or self.open[0] != number:
                self.close()
                self.open = number, _opened(shard.file)
            try:
                self.open[1].seek(at.start)
                data = self.open[1].read(at.size)
            except (OSError, EOFError, zlib.error) as error:
                raise RequestError(f"{shown(shard.file)} is truncated or damaged ({error})") from error
        if len(data) != at.size:
            raise RequestError(f"{shown(shard.file)} is truncated")
        return data

    def close(self) -> None:
        """Close the file that is open."""
        if self.open is not None:
            self.open[1].close()

    __del__ = close
