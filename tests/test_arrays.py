"""Arrays of pixels as files."""

import numpy as np
import pytest

from clsim.data.arrays import encoded, image_reader
from clsim.data.pixels import decoded

DRAW = np.random.default_rng(0)
RGB = DRAW.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def read(array):
    """Image 1 as (3,H,W) bytes."""
    return decoded(image_reader("array", array)(1), 5, 7)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB[1]),
        (RGB.transpose(0, 3, 1, 2), RGB[1]),
        (GREY, GREY[1, ..., None]),
        (GREY[:, None], GREY[1, ..., None]),
        (GREY[..., None], GREY[1, ..., None]),
        (RGB.astype(np.uint16) * 257, RGB[1]),
        (RGB / 255, RGB[1]),
        ((RGB / 255).astype(np.float32), RGB[1]),
        (RGB.astype(np.float32), RGB[1]),
        (RGB.astype(np.int64), RGB[1]),
        (GREY > 127, np.where(GREY > 127, 255, 0)[1, ..., None]),
        (RGB.astype(">u2") * 257, RGB[1]),
        (np.dstack([RGB[1], np.full((5, 7, 1), 255, np.uint8)])[None].repeat(2, 0), RGB[1]),
    ],
    ids=range(13),
)
def test_pixels_of_every_type_and_layout_come_back(array, expected):
    assert (read(array) == np.broadcast_to(expected, (5, 7, 3)).transpose(2, 0, 1)).all()


def test_transparent_pixels_are_laid_on_white():
    clear = np.zeros((1, 5, 7, 4), np.uint8)
    assert (decoded(encoded(clear[0]), 5, 7) == 255).all()
