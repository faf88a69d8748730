"""Sources: encoded images with labels, as a reader found them, and what it left out."""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clsim.errors import RequestError, unknown
from clsim.reads import READ


@dataclass(frozen=True)
class Found:
    """What a reader found, so that a run can print it."""

    split: str  # the split's own name, e.g. "Train"; empty if there is only one part
    images: int
    classes: Mapping[str, int]  # images of each class, in the order of labels
    domains: Mapping[str, int]  # images of each domain; empty if there are no domains
    left_out: Mapping[str, tuple[str, ...]]  # reason -> names of the files, folders or classes left out for it
    notes: tuple[str, ...]  # what the reader decided, one sentence each


@dataclass(frozen=True)
class Source:
    """Encoded images, in the order of their files."""

    read: Callable[[int], bytes]  # the encoded bytes of image i
    names: Sequence[str]  # name of image i in error messages; its file's path if there is one
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()
    split: str = ""  # the split's own name, for `found`
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # for `found`
    notes: tuple[str, ...] = ()  # for `found`

    @property
    def found(self) -> Found:
        """What this source has, counted, and what its reader left out."""
        per_class = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        domains: dict[str, int] = {}
        if self.domains is not None:
            per_domain = np.bincount(self.domains, minlength=len(self.domain_names)).tolist()
            domains = dict(zip(self.domain_names, per_domain, strict=True))
        classes: dict[str, int] = {}
        for name, count in zip(self.class_names, per_class, strict=True):
            classes[name] = classes.get(name, 0) + count  # a data set may declare one name twice
        return Found(self.split, len(self.labels), classes, domains, dict(self.left_out), self.notes)

    def noted(self, *notes: str, split: str | None = None) -> "Source":
        """The same source with further notes, and with the name of its split."""
        return replace(self, notes=self.notes + notes, split=self.split if split is None else split)

    def take(self, keep: NDArray[np.bool_]) -> "Source":
        """A source with only the images for which `keep` (N,) is true."""
        chosen = np.flatnonzero(keep)
        read, names = self.read, self.names
        return Source(
            read=lambda i: read(int(chosen[i])),
            names=[names[i] for i in chosen.tolist()],
            labels=self.labels[chosen],
            class_names=self.class_names,
            fingerprint=hashlib.blake2b(self.fingerprint.encode() + chosen.tobytes(), digest_size=16).hexdigest(),
            domains=None if self.domains is None else self.domains[chosen],
            domain_names=self.domain_names,
            split=self.split,
            left_out=self.left_out,
            notes=self.notes,
        )

    @staticmethod
    def join(sources: Sequence["Source"], prefixes: Sequence[str], as_domains: bool = False) -> "Source":
        """The sources one after another, with separate classes: class "3" of "mnist" becomes "mnist 3".

        With `as_domains` all sources have the same classes, and each source is a domain.
        """
        first_row = np.cumsum([0, *(len(source.labels) for source in sources)])
        first_class = np.cumsum([0, *(0 if as_domains else len(source.class_names) for source in sources)])

        def read(i: int) -> bytes:
            part = int(np.searchsorted(first_row, i, side="right")) - 1
            return sources[part].read(i - int(first_row[part]))

        pairs = list(zip(prefixes, sources, strict=True))
        class_names = tuple(f"{prefix} {name}" for prefix, source in pairs for name in source.class_names)
        if as_domains:
            class_names = sources[0].class_names
            for prefix, source in pairs:
                if source.class_names != class_names:
                    raise RequestError(f"the classes of {prefix!r} are not those of {prefixes[0]!r}")
        joined = "/".join(f"{prefix}:{source.fingerprint}" for prefix, source in pairs) + "/domains" * as_domains
        return Source(
            read=read,
            names=[f"{prefix}/{name}" for prefix, source in pairs for name in source.names],
            labels=np.concatenate([source.labels + first for source, first in zip(sources, first_class, strict=False)]),
            class_names=class_names,
            fingerprint=hashlib.blake2b(joined.encode(), digest_size=16).hexdigest(),
            domains=np.repeat(np.arange(len(sources)), np.diff(first_row)) if as_domains else None,
            domain_names=tuple(prefixes) if as_domains else (),
            split=sources[0].split,
            left_out={f"{prefix}: {why}": names for prefix, source in pairs for why, names in source.left_out.items()},
            notes=tuple(f"{prefix}: {note}" for prefix, source in pairs for note in source.notes),
        )


def alike(name: str) -> str:
    """A name without what readers do not see: case, and `_` in place of a blank; NFC and NFD are one."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


def twins(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are `alike`, each name with the first of its kind."""
    first: dict[str, str] = {}
    pairs = ((first.setdefault(alike(name), name), name) for name in names)
    return [pair for pair in pairs if pair[0] != pair[1]]


def pick(kind: str, name: str, known: Sequence[str]) -> str:
    """The name in `known` that is `name`, or else the one that is `alike`. Raises RequestError if there is none."""
    if name in known:
        return name
    for candidate in known:
        if alike(name).replace(" ", "") == alike(candidate).replace(" ", ""):
            return candidate
    raise unknown(kind, name, known)


def shown(path: Path) -> str:
    """A path that can be printed: bytes that are not UTF-8 are written as \\xe9."""
    try:
        return os.fsencode(path).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # halves of characters, as JSON can have them
        return ascii(str(path))


def require_file(file: Path) -> None:
    """Raises RequestError for what cannot be read as a file: opening a named pipe would wait for ever."""
    try:
        about = file.stat()
    except (OSError, ValueError) as error:
        raise RequestError(f"no such file: {shown(file)}") from error
    if not stat.S_ISREG(about.st_mode):
        raise RequestError(f"{shown(file)} is not a file")
    if about.st_size == 0:
        raise RequestError(f"{shown(file)} is empty: it has no bytes")


def fingerprint_files(files: Sequence[Path], *more: str) -> str:
    """A hash of the files' contents, in order, and of all settings that change what is read from them."""
    READ.add_files(files)
    digest = hashlib.blake2b("/".join(more).encode(), digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def train_and_test(
    source: Source, note: str = "a fifth of the images is for testing, by a hash of each image's name"
) -> tuple[Source, Source]:
    """Training and test images of a source without splits: a fixed fifth is for testing, by a hash of its names."""
    source = source.noted(note)
    testing = held_out(source.names, labels=source.labels)
    return source.take(~testing).noted(split="train (80 %)"), source.take(testing).noted(split="test (20 %)")


def held_out(names: Sequence[str], share: float = 0.2, labels: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """(N,) true for about `share` of the names, by their hash: other images do not change the choice.

    With (N,) `labels`, a class of two or more images has at least one of each kind: if all would be of one kind, the
    image with the lowest hash is held out, and no other.
    """
    hashes = (hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=4).digest() for name in names)
    numbers = np.array([int.from_bytes(h, "big") for h in hashes], dtype=np.int64)
    chosen = numbers < int(share * 2**32)
    for rows in (np.flatnonzero(labels == each) for each in np.unique(labels)) if labels is not None else ():
        if len(rows) > 1 and len(set(chosen[rows].tolist())) == 1:
            first = min(rows.tolist(), key=lambda row: (numbers[row], names[row]))
            chosen[rows] = rows == first
    return chosen


def cut(source: Source, where: Path, note: str) -> tuple[Source, Source]:
    """Training and test images of a source without splits; `note` says so, and by what its names are hashed.

    Raises RequestError for a class of one image, which cannot have both; with domains, it is noted.
    """
    train, test = train_and_test(source, note)
    per_class = (np.bincount(part.labels, minlength=len(source.class_names)).tolist() for part in (train, test))
    counts = zip(source.class_names, *per_class, strict=True)
    lacking = [(name, training, tests) for name, training, tests in counts if not (training and tests)]
    if not lacking:
        return train, test
    name, training, tests = lacking[0]
    more = f" (and {len(lacking) - 1} more classes like it)" if len(lacking) > 1 else ""
    text = (
        f"{shown(where)}: class {name!r} has {training + tests} images, and the hash of their paths or names leaves "
        f"{training} of them for training and {tests} for testing{more}; "
        "add images, make splits (train, test), or use scenario.exclude"
    )
    if not source.domain_names:
        raise RequestError(text)
    return train.noted(text), test
