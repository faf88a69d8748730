"""Arrays of pixels as image files, so that they are stored and checked as all other images are."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.errors import RequestError

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
NEARLY_BLACK = 4096  # of 65535: 12-bit values in 16 bits
SHAPES = "images are (N,H,W), (N,H,W,C) or (N,C,H,W) with 1, 3 or 4 channels"


def image_reader(where: str, array: NDArray[Any]) -> Callable[[int], bytes]:
    """(N,H,W), (N,H,W,C) or (N,C,H,W) pixels -> a function that returns image i as a file without loss.

    Unsigned integers are scaled by the range of their type, other integers are 0 to 255, and floats are 0 to 1 or 0 to
    255. Raises RequestError, which begins with `where`, for other shapes, types and values.
    """
    if array.ndim == 4 and array.shape[3] not in CHANNELS and array.shape[1] in CHANNELS:
        array = np.moveaxis(array, 1, 3)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in CHANNELS) or not all(array.shape[1:]):
        raise RequestError(f"{where} has the shape {array.shape}; {SHAPES}")
    factor = 255 / _white(where, array)
    return lambda i: encoded(array[i] if factor == 1 else np.rint(array[i].astype(np.float64) * factor))


def _white(where: str, array: NDArray[Any]) -> float:
    """The value that is white."""
    kind = array.dtype.kind
    if kind not in "biuf":
        raise RequestError(f"{where} has pixels of type {array.dtype}; pixels are integers or floats")
    if kind == "b" or array.dtype == np.uint8:
        return 1.0 if kind == "b" else 255.0
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if array.dtype == np.uint16:
        if 0 < highest < NEARLY_BLACK:
            raise RequestError(
                f"{where} has 16-bit pixels up to {highest:g} only, which is nearly black; multiply them so that "
                "65535 is white (12-bit values by 16)"
            )
        return 65535.0
    if not (lowest >= 0 and highest <= 255):  # also if some are NaN
        allowed = "floats are 0 to 1 or 0 to 255" if kind == "f" else f"{array.dtype} is 0 to 255"
        raise RequestError(f"{where} has pixels from {lowest:g} to {highest:g}; {allowed}")
    return 1.0 if kind == "f" and highest <= 1 else 255.0


def encoded(pixels: NDArray[Any]) -> bytes:
    """(H,W), (H,W,1), (H,W,3) or (H,W,4) pixels from 0 to 255 -> a file: PGM or PPM, which is fast, or PNG."""
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels < 4:
        return f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode() + pixels.tobytes()
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def require_one_each(file: Path, image: str, images: int, label: str, labels: int) -> None:
    """Raises RequestError if there are not as many labels as images."""
    if images != labels:
        raise RequestError(f"{file}: {image} has {images} images, but {label} has {labels} labels")
