"""Split digits: the embedded default, real images with nothing to download."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clsim.data.readers import held_out
from clsim.data.streams import Benchmark, ClassScenario, DataAccess, class_incremental
from clsim.data.table import ImageTable


def digits() -> tuple[ImageTable, ImageTable]:
    """The digits for training, and a fixed fifth for testing."""
    from sklearn.datasets import load_digits

    source = load_digits()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = source.target.astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    testing = held_out([f"digits/{i}" for i in range(len(labels))])
    train, test = (ImageTable.from_arrays(images[keep], labels[keep], names) for keep in (~testing, testing))
    return train, test


@dataclass(kw_only=True)
class SplitDigits(ClassScenario):
    """Handwritten digits of 8x8 pixels, two new ones at a time; they come with scikit-learn.

    1,797 images of 43 writers (Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits), a fixed fifth
    of them for testing.
    """

    classes_per_experience: int = 2  # new classes in each experience; must divide 10 (minus base_classes)
    protocol: Literal["class", "task"] = "class"  # task: the experience's number is also known at test

    def build(self, data: DataAccess) -> Benchmark:
        """Ten classes in experiences of `classes_per_experience`."""
        train, test = digits()
        # no mirrored digits: most of them are not digits
        return class_incremental(self, train, test, self.classes_per_experience, self.protocol, flip=False)
