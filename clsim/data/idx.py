"""MNIST's idx files, compressed or not, as torchvision's MNIST, Fashion-MNIST and KMNIST have them."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clsim.data.arrays import image_reader, require_one_each
from clsim.data.labels import UNDECLARED, Declared, array_values
from clsim.data.raw import Raw
from clsim.data.sources import alike, require_file, shown
from clsim.errors import RequestError

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST", "qmnist": "QMNIST"}
PREFIXES = {"train": "train", "test": "t10k"}
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
NAMES = {"fashionmnist": FASHION, "kmnist": KUZUSHIJI}  # the names that torchvision gives the classes
UNSIGNED_BYTES = 8  # the code of the type
AT_ONCE = 1 << 24  # bytes


def idx_in(folder: Path) -> Path | None:
    """The folder of idx files: this one, or `raw` in it, as in torchvision's MNIST/raw; None if there are none."""
    for place in (folder, folder / "raw"):
        if any(_file(place, prefix, "images", 3) for prefix in PREFIXES.values()):
            return place
    return None


def _file(folder: Path, prefix: str, what: str, dimensions: int) -> Path | None:
    names = [f"{prefix}-{what}{dot}idx{dimensions}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_idx(folder: Path) -> list[Raw]:
    """Training and test images. Raises RequestError that names a file that is missing or damaged."""
    return [_split(folder, split, prefix) for split, prefix in PREFIXES.items()]


def _split(folder: Path, split: str, prefix: str) -> Raw:
    files = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        file = _file(folder, prefix, what, dimensions)
        if file is None:
            raise RequestError(f"{shown(folder)} has no file {prefix}-{what}-idx{dimensions}-ubyte, or .gz")
        files.append(file)
    pixels, values = _array(files[0], 3), _array(files[1], 1)
    require_one_each(files[1], files[0].name, len(pixels), files[1].name, len(values))
    home = folder.parent if folder.name == "raw" else folder
    names = NAMES.get(alike(home.name).replace(" ", ""))
    return Raw(
        split=split,
        read=image_reader(shown(files[0]), pixels),
        names=[f"{files[0].name}[{i}]" for i in range(len(pixels))],
        labels=[(files[1], array_values(shown(files[1]), values))],
        what="the list of labels",
        files=files,
        settings=(split,),
        declared=UNDECLARED if names is None else Declared(names),
        notes=(f"the idx files of {home.name}, as torchvision downloads them",),
    )


def _array(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in a file. Raises RequestError if it is not one of bytes, or if it has not its length."""
    require_file(file)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            if head[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(head) < 4 + 4 * dimensions:
                raise RequestError(f"{shown(file)} is no idx file of bytes with {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            length = math.prod(shape)
            data = bytearray()
            while len(data) <= length and (more := stream.read(AT_ONCE)):  # a wrong length must not take memory
                data += more
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise RequestError(f"{shown(file)} is truncated or damaged ({error})") from error
    if len(data) != length:
        found = "more" if len(data) > length else f"{len(data)}"
        raise RequestError(f"{shown(file)} is truncated or damaged: it has {found} bytes for {length} values")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
