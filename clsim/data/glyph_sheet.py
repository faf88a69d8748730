"""A contact sheet of glyphs: ``python -m clsim.data.glyph_sheet FILE.png``."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clsim.data import glyphs

ZOOM = 2  # pixels of the sheet for each pixel of a glyph


def sheet(columns: int = 20) -> Image.Image:
    """One row for each domain: every shape twice, with its fills in turn."""
    classes = np.array([10 * (i // 2) + (3 * i + i // 10) % 10 for i in range(columns)])
    rows = len(glyphs.DOMAINS)
    images = glyphs.render(
        np.tile(classes, rows), np.repeat(np.arange(rows), columns), np.zeros(rows * columns, dtype=np.int64), 0
    )
    grid = images.reshape(rows, columns, 3, glyphs.SIZE, glyphs.SIZE).transpose(0, 3, 1, 4, 2)
    flat = grid.reshape(rows * glyphs.SIZE, columns * glyphs.SIZE, 3)
    return Image.fromarray(flat).resize((flat.shape[1] * ZOOM, flat.shape[0] * ZOOM), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sheet().save(Path(sys.argv[1]))
