"""Images as people have them, for predictions: arrays, tensors, Pillow images or files, one or many.

Each image is prepared by itself, with the same code that stores the images of a table.
"""

import copy
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clsim.data.pixels import decoded
from clsim.errors import RequestError

CHANNELS = (1, 3)  # grey and RGB
ACCEPTED = "give uint8 or float images in [0, 1], as (N,3,H,W), (N,H,W,3), one image, Pillow images or paths"


class GivenImages:
    """N images of any accepted kind; `take` prepares some of them."""

    def __init__(self, images: Any, size: tuple[int, int] | None = None) -> None:
        """`size`: (height, width) of the run's table; None (unknown): images keep their size, which must be one.

        Raises RequestError with what is wrong and what is accepted.
        """
        self.size = size
        self.images: Sequence[Any] = _listed(images)
        if not len(self.images):
            raise RequestError(f"there is no image: {ACCEPTED}")

    def __len__(self) -> int:
        return len(self.images)

    def only(self, places: NDArray[np.int64]) -> "GivenImages":
        """The images at these places, in this order."""
        chosen = copy.copy(self)
        chosen.images = _At(self.images, places)
        return chosen

    def take(self, start: int, stop: int) -> NDArray[np.uint8]:
        """(n,3,H,W) uint8: these images as the run's table stores them. Raises RequestError for one of a wrong kind."""
        found = [self._one(number) for number in range(start, min(stop, len(self)))]
        sizes = {image.shape[1:] for image in found}
        if len(sizes) > 1:
            some = " and ".join(f"{height}x{width}" for height, width in sorted(sizes)[:2])
            raise RequestError(f"the run has not recorded the size of its images: give images of one size, not {some}")
        return np.stack(found)

    def _one(self, number: int) -> NDArray[np.uint8]:
        """(3,H,W) uint8."""
        image, name = self.images[number], f"image {number}"
        if isinstance(image, str | os.PathLike):
            return self._decoded(_read(Path(image)), str(image))
        if isinstance(image, Image.Image):
            return self._decoded(_encoded(image, name), name)
        pixels = _pixels(_array(image, name), name)
        if self.size in (None, pixels.shape[1:]):
            return pixels
        return self._decoded(_encoded(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), name), name)

    def _decoded(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """(3,H,W) uint8, scaled and cut by itself as the table does it. Raises RequestError with the image's name."""
        try:
            if self.size is not None:
                return decoded(data, *self.size)
            with Image.open(io.BytesIO(data)) as image:
                return decoded(data, image.height, image.width)
        except Exception as error:  # Pillow raises many kinds for broken files
            raise RequestError(f"cannot decode {name}: {error}") from error


def _listed(images: Any) -> Sequence[Any]:
    """One or many images as a sequence of single images."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, Tensor | np.ndarray):
        array = _array(images, "images")
        if array.ndim == 4:
            _require_values(array, "images")
            return _Rows(array, _channel_axis(array.shape, "images"))
        return [array]
    if isinstance(images, bytes | dict | set) or not isinstance(images, Iterable):
        raise RequestError(f"images of type {type(images).__name__} cannot be read: {ACCEPTED}")
    found = list(images)
    if found and all(isinstance(each, int | float | list | tuple) for each in found):
        return _listed(_from_numbers(found))
    return found


def _from_numbers(values: list[Any]) -> NDArray[Any]:
    """Nested lists of numbers as an array. Raises RequestError if their lengths differ."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise RequestError(f"these lists are no array of one shape: {ACCEPTED}") from error


class _At(Sequence[Any]):
    """Some elements of a sequence."""

    def __init__(self, images: Sequence[Any], places: NDArray[np.int64]) -> None:
        self.images, self.places = images, places.tolist()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        return self.images[self.places[number]]


class _Rows(Sequence[Any]):
    """The images of an (N,3,H,W) or (N,H,W,3) array, each as (C,H,W)."""

    def __init__(self, array: NDArray[Any], channel_axis: int) -> None:
        self.array = np.moveaxis(array, channel_axis, 1)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, number: Any) -> Any:
        return _Known(self.array[number])

    def __iter__(self) -> Iterator[Any]:
        return map(_Known, self.array)


class _Known:
    """A (C,H,W) image: a part of an array whose layout and values have been checked."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


def _array(image: Any, name: str) -> Any:
    """A tensor on any device, or an array, as an array; others raise RequestError."""
    if isinstance(image, Tensor):
        plain = image.detach().cpu()
        return (plain.float() if plain.is_floating_point() else plain).numpy()
    if isinstance(image, np.ndarray | _Known):
        return image
    raise RequestError(f"{name} is of type {type(image).__name__}, which cannot be read: {ACCEPTED}")


def _pixels(given: Any, name: str) -> NDArray[np.uint8]:
    """An array as (3,H,W) uint8."""
    if isinstance(given, _Known):
        array = given.array
    else:
        _require_values(given, name)
        if given.ndim not in (2, 3):
            raise RequestError(f"{name} has the shape {given.shape}; one image has 2 or 3 axes: {ACCEPTED}")
        array = given[None] if given.ndim == 2 else np.moveaxis(given, _channel_axis(given.shape, name), 0)
    if array.dtype != np.uint8:
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (3, *array.shape[1:])))


def _channel_axis(shape: tuple[int, ...], name: str) -> int:
    """The axis of an image's 1 or 3 channels: the first or the last of its three."""
    found = [axis for axis in (len(shape) - 3, len(shape) - 1) if shape[axis] in CHANNELS]
    if len(found) == 2:
        raise RequestError(f"{name} of shape {shape}: the channels may be the first or the last axis of an image")
    if not found:
        raise RequestError(f"{name} of shape {shape} has no axis of 1 or 3 channels: {ACCEPTED}")
    return found[0]


def _require_values(array: NDArray[Any], name: str) -> None:
    """Raises RequestError unless an array has pixels, of uint8 or of floats in [0, 1]."""
    if array.size == 0:
        raise RequestError(f"{name} of shape {array.shape} has no pixels: {ACCEPTED}")
    if array.dtype == np.uint8:
        return
    if array.dtype.kind != "f":
        raise RequestError(f"{name} has the type {array.dtype}, whose range is not known: {ACCEPTED}")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RequestError(f"{name} has values that are not finite (NaN or infinite)")
    if low < 0 or high > 1:
        why = "normalised pixels cannot be read back" if low < 0 else "values up to 255 are given as uint8"
        raise RequestError(f"{name} has float values from {low:.4g} to {high:.4g}, not in [0, 1]: {why}")


def _read(path: Path) -> bytes:
    """A file's bytes. Raises RequestError if it is no file."""
    path = path.expanduser()
    if not path.is_file():
        raise RequestError(f"no image file {path}" + (": it is a folder" if path.is_dir() else ""))
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _encoded(image: Image.Image, name: str) -> bytes:
    """A Pillow image in a lossless file: so every kind of image is read by the code that reads a table's files."""
    stream = io.BytesIO()
    try:
        plain = image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
        image.save(stream, "PNG" if plain else "TIFF", exif=image.getexif())
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"cannot read {name}, a Pillow image of mode {image.mode}: {error}") from error
    return stream.getvalue()
