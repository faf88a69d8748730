"""`.npz` files of arrays: x_train, y_train, x_test, y_test as Keras names them, train_images, ... as MedMNIST does."""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.data.arrays import image_reader, require_one_each
from clsim.data.folders import split_kind
from clsim.data.labels import array_values
from clsim.data.raw import Raw, Wanted
from clsim.data.shards import SplitFiles
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

ROLES = {
    "image": ("x", "image", "images", "img", "imgs", "data", "pixels"),
    "label": ("y", "label", "labels", "target", "targets", "classes"),
    "domain": ("domain", "domains"),
}
HINT = "name the arrays x_train, y_train, x_test, y_test, or use scenario.image=NAME scenario.label=NAME"


def read_npz(groups: Sequence[SplitFiles], wanted: Wanted) -> list[Raw]:
    """The splits of files. Raises RequestError that names the file and the array. Nothing is unpickled."""
    found = []
    for split, files in groups:
        for file in files:
            found += _splits(file, split, wanted)
    return found


def _splits(file: Path, split: str, wanted: Wanted) -> list[Raw]:
    require_file(file)
    try:
        with file.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise RequestError(f"{shown(file)} has one array without a name; {HINT}")
            names = {role: _by_split(stored.files, role, getattr(wanted, role), file) for role in ROLES}
            pairs = [each for each in names["image"] if each in names["label"]]
            if not pairs:
                raise RequestError(f"{shown(file)} has the arrays {', '.join(stored.files) or 'none'}; {HINT}")
            return [_split(file, each or split, each, stored, names) for each in pairs]
    except RequestError:
        raise
    except MemoryError as error:
        raise RequestError(f"{shown(file)} says that it has arrays that do not fit into memory ({error})") from error
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        if "allow_pickle" in why:
            why = "it has arrays of Python objects, which could run code and are not read"
        raise RequestError(f"{shown(file)} cannot be read as .npz: {why}") from error


def _by_split(names: Sequence[str], role: str, wanted: str, file: Path) -> dict[str, str]:
    """Split -> the name of its array of this role; the split is empty if the name has none."""
    found: dict[str, str] = {}
    for name in names:
        words = re.split(r"[\W_]+", name.lower())
        splits = [word for word in words if split_kind(word)]
        rest = "_".join(word for word in words if not split_kind(word))
        if (name == wanted or rest == wanted.lower()) if wanted else rest in ROLES[role]:
            split = splits[0] if splits and name != wanted else ""
            if split in found:
                raise RequestError(
                    f"{shown(file)} has {found[split]!r} and {name!r}, which may both be the {role}s; {HINT}"
                )
            found[split] = name
    if wanted and not found:
        raise RequestError(f"{shown(file)} has no array {wanted!r}; there are: {', '.join(names)}")
    return found


def _split(file: Path, split: str, key: str, stored: Any, names: dict[str, dict[str, str]]) -> Raw:
    """One split; `key` is its name in `names`."""
    image, label, domain = (names[role].get(key, "") for role in ROLES)

    def values(name: str) -> NDArray[Any]:
        found = array_values(f"{shown(file)}: array {name!r}", stored[name])
        require_one_each(file, f"{image!r}", len(pixels), f"{name!r}", len(found))
        return found

    pixels: NDArray[Any] = stored[image]
    read = image_reader(f"{shown(file)}: array {image!r}", pixels)
    return Raw(
        split=split,
        read=read,
        names=[f"{file.name} {image}[{i}]" for i in range(len(pixels))],
        labels=[(file, values(label))],
        what=f"array {label!r}",
        files=[file],
        settings=(image, label, domain),
        domains=[(file, values(domain))] if domain else None,
        notes=(f"images are array {image!r}, labels array {label!r}",),
    )
