"""Tables of glyphs: so many of each class and domain, apart for training and for testing."""

from collections.abc import Sequence

import numpy as np

from clsim.data import glyphs
from clsim.data.streams import matching_name
from clsim.data.table import ImageTable
from clsim.errors import RequestError

SEED = 2  # of the scenarios' pictures; clip_micro was pretrained on those of seed 0 and measured on those of 1
TEST_START = 1 << 20  # index of the first test picture of a class and domain


def chosen_classes(which: str) -> list[int]:
    """Ids of "all" classes, of those that clip_micro has "seen", or of those "held_out" from it."""
    return [c for c in range(100) if which == "all" or (c in glyphs.HELD_OUT) == (which == "held_out")]


def glyph_table(classes: Sequence[int], domains: Sequence[str], per_class: int, test: bool = False) -> ImageTable:
    """`per_class` pictures of each of the classes in each of the domains; class names are those of `classes` alone.

    The first pictures of a larger table are those of a smaller one. Raises RequestError for an unknown domain, and for
    fewer than one picture.
    """
    if per_class < 1:
        raise RequestError(f"images a class must be at least 1, not {per_class}")
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
    """A table to train on, and one of other pictures to test with."""
    return glyph_table(classes, domains, train_per_class), glyph_table(classes, domains, test_per_class, test=True)
