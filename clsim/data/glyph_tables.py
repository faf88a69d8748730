"""Tables of glyphs: a number of pictures per class and domain, separate for training and testing."""

from collections.abc import Sequence

import numpy as np

from clsim.data import glyphs
from clsim.data.streams import matching_name
from clsim.data.table import ImageTable
from clsim.errors import RequestError

SEED = 2  # of the scenarios' pictures; clip_micro was pretrained on pictures of seed 0 and measured on those of seed 1
TEST_START = 1 << 20  # index of the first test picture of a class and domain


def chosen_classes(which: str) -> list[int]:
    """Ids of "all" classes, of those "seen" in clip_micro's pretraining, or of those "held_out" from it."""
    return [c for c in range(100) if which == "all" or (c in glyphs.HELD_OUT) == (which == "held_out")]


def glyph_table(classes: Sequence[int], domains: Sequence[str], per_class: int, test: bool = False) -> ImageTable:
    """`per_class` pictures of each class in each domain; class names are only those of `classes`.

    A larger table begins with the pictures of a smaller one. Raises RequestError for an unknown domain, and for fewer
    than one picture.
    """
    if per_class < 1:
        raise RequestError(f"images per class must be at least 1, not {per_class}")
    names = [matching_name("domain", name, glyphs.DOMAINS) for name in domains]
    shape = (len(names), len(classes), per_class)
    which, labels, indices = (axis.reshape(-1) for axis in np.indices(shape))
    ids = np.array([glyphs.DOMAINS.index(name) for name in names])[which]
    images = glyphs.render(np.asarray(classes)[labels], ids, indices + TEST_START * test, SEED)
    class_names = tuple(glyphs.class_names()[c] for c in classes)
    return ImageTable.from_arrays(images, labels, class_names, which, tuple(names))


def train_and_test(
    classes: Sequence[int], domains: Sequence[str], train_per_class: int, test_per_class: int
) -> tuple[ImageTable, ImageTable]:
    """A table for training, and one with other pictures for testing."""
    return glyph_table(classes, domains, train_per_class), glyph_table(classes, domains, test_per_class, test=True)
