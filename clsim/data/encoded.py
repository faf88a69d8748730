"""Encoded images in one file, decoded each time they are read: for sets that are too large to store decoded."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clsim.data.pixels import decoded, whole_image
from clsim.errors import RequestError, RunFailed

T = TypeVar("T")
CHUNK = 1024  # most images whose results wait in memory
GROUP = 32  # images of one task of a thread: for small ones, handing each over takes as long as decoding it


class EncodedImages:
    """N encoded images in one file. Memory holds only each image's position in the file."""

    def __init__(self, folder: Path, height: int, width: int, bicubic: bool = False, whole: bool = False) -> None:
        """`folder` has images.bin, and spans.npy: N rows with an image's first byte and length.

        `height`, `width` and `bicubic` are those of `decoded`. If `whole`, images differ in size: `height` and `width`
        are those of the square in the centre, and `folder` has sizes.npy, (N,2) heights and widths of whole images.
        """
        self.folder = folder
        self.bicubic = bicubic
        self.several_sizes = whole
        self._spans: NDArray[np.int64] = np.load(folder / "spans.npy")
        self.shape = (len(self._spans), 3, height, width)
        self.sizes: NDArray[np.int64] = (
            np.load(folder / "sizes.npy") if whole else np.broadcast_to((height, width), (len(self), 2))
        )
        self._file = os.open(folder / "images.bin", os.O_RDONLY)  # now: so a cache may be cleared during a run

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) rows -> (n, 3, H, W), decoded. Raises RunFailed with the name of an image that cannot be decoded."""
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for place, image in enumerate(self._pool.map(self._one, np.asarray(rows).tolist())):
            found[place] = image
        return found

    def whole(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """As `take`; if images differ in size, n whole images (3, h, w)."""
        return list(self._pool.map(self._whole, np.asarray(rows).tolist())) if self.several_sizes else self.take(rows)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count())  # codecs run outside the GIL

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)

    def _one(self, row: int) -> NDArray[np.uint8]:
        return self._decoded(row, lambda data: decoded(data, *self.shape[2:], self.bicubic))

    def _whole(self, row: int) -> NDArray[np.uint8]:
        return self._decoded(row, lambda data: whole_image(data, self.shape[2]))

    def _decoded(self, row: int, how: Callable[[bytes], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        start, length = self._spans[row].tolist()
        # read, not mapped: mapped pages would count as this process's memory
        data = os.pread(self._file, length, start)
        try:
            return how(data)
        except Exception as error:  # Pillow raises many kinds for broken files
            raise RunFailed(str(bad_image(self._name(row), error))) from error

    def _name(self, row: int) -> str:
        try:
            return read_names(self.folder)[row]
        except OSError:  # the cache was cleared
            return f"in row {row}"


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Names in lines. File names may have line breaks, and bytes that are not UTF-8."""
    lines = "\n".join(name.replace("\n", " ") for name in names)
    (folder / "names.txt").write_bytes(lines.encode("utf-8", "surrogateescape"))


def read_names(folder: Path) -> list[str]:
    """The names that `write_names` wrote."""
    return (folder / "names.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")


def bad_image(name: str, error: Exception) -> RequestError:
    """The error for an image that cannot be decoded."""
    return RequestError(f"cannot decode image {name} ({reason(error)}); on_bad_image=skip leaves it out")


def reason(error: Exception) -> str:
    """Why an image cannot be decoded; the same text in every process, so without addresses of memory."""
    text = str(error) or type(error).__name__
    return "not an image of a known format" if text.startswith("cannot identify image file") else text


def for_each(
    rows: Sequence[int], work: Callable[[int], T], names: Sequence[str], bad: dict[int, str] | None
) -> Iterator[T | None]:
    """Results of `work` for each row, in order, computed in threads; None for a bad image.

    The reasons for bad images are put into `bad`. Without it, the first raises RequestError with the image's name.
    """

    def one(row: int) -> T | None:
        try:
            return work(row)
        except Exception as error:  # Pillow raises many kinds for broken files
            if bad is None:
                raise bad_image(names[row], error) from error
            bad[row] = reason(error)
            return None

    def together(start: int) -> list[T | None]:
        return list(map(one, rows[start : start + GROUP]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Future[list[T | None]]] = deque()
        try:
            for start in range(0, len(rows), GROUP):
                if len(waiting) * GROUP >= CHUNK:
                    yield from waiting.popleft().result()
                waiting.append(pool.submit(together, start))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for each in waiting:  # after an error, or Ctrl-C
                each.cancel()
