"""Encoded images in one file, decoded each time they are read: for sets that are too large to store decoded."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clsim.errors import RequestError, RunFailed

T = TypeVar("T")
CHUNK = 1024  # most images whose results wait in memory


class EncodedImages:
    """N encoded images in one file. Memory holds only each image's position in the file."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        """`folder` has images.bin, and spans.npy: N rows with an image's first byte and length."""
        self.shape = (len(np.load(folder / "spans.npy", mmap_mode="r")), 3, height, width)
        self.folder = folder
        self._spans: NDArray[np.int64] = np.load(folder / "spans.npy")

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) rows -> (n, 3, H, W), decoded. Raises RunFailed with the name of an image that cannot be decoded."""
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for place, image in enumerate(self._pool.map(self._one, np.asarray(rows).tolist())):
            found[place] = image
        return found

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count())  # codecs run outside the GIL

    @cached_property
    def _file(self) -> int:
        return os.open(self.folder / "images.bin", os.O_RDONLY)

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)

    def _one(self, row: int) -> NDArray[np.uint8]:
        start, length = self._spans[row].tolist()
        # read, not mapped: mapped pages would count as this process's memory
        data = os.pread(self._file, length, start)
        try:
            return decoded(data, *self.shape[2:])
        except Exception as error:  # Pillow raises many kinds for broken files
            name = (self.folder / "names.txt").read_text(encoding="utf-8").splitlines()[row]
            raise RunFailed(str(bad_image(name, error))) from error


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width), read only from the header."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def decoded(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Encoded bytes -> (3, height, width): unchanged, or scaled to cover that size and cropped to its centre."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    if rgb.size != (width, height):
        rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb).transpose(2, 0, 1)


def bad_image(name: str, error: Exception) -> RequestError:
    """The error for an image that cannot be decoded."""
    return RequestError(f"cannot decode image {name} ({error}); on_bad_image=skip leaves it out")


def for_each(
    rows: Sequence[int], work: Callable[[int], T], names: Sequence[str], on_bad_image: str
) -> Iterator[T | None]:
    """Results of `work` for each row, in order, computed in threads; None for a bad image if `on_bad_image` is "skip".

    Raises RequestError with the image's name if it is "stop".
    """

    def one(row: int) -> T | None:
        try:
            return work(row)
        except Exception as error:  # Pillow raises many kinds for broken files
            if on_bad_image == "skip":
                return None
            raise bad_image(names[row], error) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), CHUNK):
            yield from pool.map(one, rows[start : start + CHUNK])
