"""Which columns have images, labels, domains and splits: as a user says, or by the usual names."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clsim.data.raw import Wanted
from clsim.data.sources import alike, shown
from clsim.errors import RequestError

# without case, blanks and "_"
IMAGE = (
    *("image", "images", "img", "picture", "photo", "file", "files", "filename", "filenames", "filepath", "filepaths"),
    *("path", "paths", "imagepath", "imgpath", "imagefile", "imagefilename", "imagename", "png", "jpg", "jpeg"),
)
LABEL = ("label", "labels", "finelabel", "class", "classname", "classlabel", "target", "category", "y", "cls")
DOMAIN = ("domain", "domains", "style")
SPLIT = ("split", "splits", "set", "dataset", "subset", "partition")


class Columns(NamedTuple):
    """Names of columns."""

    image: str
    label: str
    domain: str | None
    split: str | None
    note: str


def find_columns(
    file: Path, names: Sequence[str], wanted: Wanted, images: Sequence[str] = (), classes: Sequence[str] = ()
) -> Columns:
    """The columns of a file that has `names`. `images` and `classes`: columns that are such by their type.

    Raises RequestError with the names if there are none, or several of one kind.
    """
    image = _one(file, "images", "image", names, wanted.image, images, IMAGE)
    label = _one(file, "labels", "label", names, wanted.label, classes, LABEL)
    rest = [name for name in names if name not in (image, label)]
    domain = _named(names, wanted.domain) if wanted.domain else usual(rest, DOMAIN)
    if wanted.domain and not domain:
        raise _none(file, wanted.domain, names)
    split = usual([name for name in rest if name not in domain[:1]], SPLIT)
    if len({image, label, *domain[:1], *split[:1]}) < 2 + len(domain[:1]) + len(split[:1]):
        raise RequestError(f"{shown(file)}: images, labels, domains and splits are different columns")
    note = f"images are column {image!r}, labels column {label!r}"
    note += f", domains column {domain[0]!r}" if domain else ""
    note += f", splits column {split[0]!r}" if split else ""
    return Columns(image, label, domain[0] if domain else None, split[0] if split else None, note)


def is_listing(names: Sequence[str], wanted: Wanted) -> bool:
    """Whether there are columns of images and of labels."""
    image = _named(names, wanted.image) if wanted.image else usual(names, IMAGE)
    label = _named(names, wanted.label) if wanted.label else usual(names, LABEL)
    return bool(image and label)


def typed_columns(metadata: Any, kind: str) -> list[str]:
    """The columns of one type of feature, by an Arrow schema's metadata as the Hub's files have it."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [name for name, each in features.items() if each["_type"] == kind]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return []  # `declared_names` notes it


def _one(
    file: Path, what: str, field: str, names: Sequence[str], name: str, typed: Sequence[str], kind: Sequence[str]
) -> str:
    if name:
        if not _named(names, name):
            raise _none(file, name, names)
        return name
    found = [each for each in typed if each in names]
    if len(found) != 1:
        found = usual(names, kind)
    if len(found) == 1:
        return found[0]
    told = f"several columns that may be {what}: {', '.join(found)}" if found else f"no column of {what}"
    raise RequestError(f"{shown(file)} has {told}; name it with scenario.{field}=COLUMN; there are: {', '.join(names)}")


def _named(names: Sequence[str], name: str) -> list[str]:
    return [each for each in names if each == name]


def usual(names: Iterable[str], kind: Sequence[str]) -> list[str]:
    """The names that are usual for a kind of column, the most usual first."""
    plain = {name: alike(name).replace(" ", "") for name in names}
    return sorted((name for name in plain if plain[name] in kind), key=lambda name: kind.index(plain[name]))


def _none(file: Path, name: str, names: Sequence[str]) -> RequestError:
    return RequestError(f"{shown(file)} has no column {name!r}; there are: {', '.join(names)}")
