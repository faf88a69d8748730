"""Transfer: one experience with few images, to compare tuners (VTAB-1k, Zhai et al. 2019, arXiv:1910.04867)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clsim.data.glyph_tables import glyph_table
from clsim.data.protocols import BaseToNew
from clsim.data.readers import Hub, Source
from clsim.data.sources import train_and_test
from clsim.data.streams import Benchmark, DataAccess, Experience, Scenario, few_shot, first_of_each_class
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.scenarios.five_datasets import SETS
from clsim.scenarios.split_cifar100 import HUB as CIFAR100
from clsim.scenarios.split_digits import digits

TUNE_SHARE = 0.2  # of the training images, held out to choose hyper-parameters: VTAB-1k's 800 and 200


class Files(NamedTuple):
    """The location of a table's images; the table's name is the local folder."""

    image: str  # column of the images
    label: str  # column of the labels
    hub: Hub
    splits: bool = True  # false: one split, of which a fixed fifth is for testing


TABLES = {
    "cifar100": Files("img", "fine_label", CIFAR100),
    **{name: Files(image, "label", hub) for name, (image, hub) in SETS.items()},
    "usps": Files("image", "label", Hub("flwrlabs/usps", "main")),
    "pacs": Files("image", "label", Hub("flwrlabs/pacs", "main"), splits=False),
}
GLYPHS = {"train": 50, "test": 20}  # drawn pictures per class
UNMIRRORED = ("digits", "mnist", "notmnist", "svhn", "usps")  # a mirrored digit or letter is a different one, or none


@dataclass(kw_only=True)
class Transfer(Scenario):
    """One experience of 1000 training images, all classes together, with VTAB-1k's protocol.

    Choose hyper-parameters with split=tune: it trains on 80 % of the training images and tests on the other 20 %; test
    images are not read. Then train on all of them with split=final and use the result of the last epoch. The training
    images are balanced: the numbers of images per class differ by at most one, if there are enough images. The 80 %
    and the 20 % are balanced, too.

    For few-shot learning use `shots` in place of `train`. base_to_new=true is CoCoOp's protocol (Zhou et al. 2022,
    arXiv:2203.05557): the first half of the classes is learned, and each half is tested among its own classes.
    """

    table: Literal[
        "digits", "glyphs", "cifar100", "cifar10", "mnist", "notmnist", "svhn", "fashion_mnist", "usps", "pacs"
    ] = "digits"  # the images; digits come with scikit-learn, and glyphs are drawn
    train: int | None = 1000  # training images; none: all
    split: Literal["final", "tune"] = "final"  # tune: a fifth of the training images are the test images
    shots: int | None = None  # training images of each class, drawn by order_seed, in place of `train`
    base_to_new: bool = False  # train on the first half of the classes; test each half among its own classes

    def __post_init__(self) -> None:
        if self.split == "tune" and (self.shots is not None or self.base_to_new):
            raise RequestError("split=tune is for train=N, without shots and base_to_new")

    def build(self, data: DataAccess) -> Benchmark:
        """One training and one test experience with all classes of the table; base_to_new: one test for each half."""
        train = self._table(data, "train")
        rows = self._dealt(train) if self.shots is None else self._shots(train)
        if self.split == "tune":
            test, cut = train, len(rows) - round(TUNE_SHARE * len(rows))
            rows, testing = rows[:cut], rows[cut:]
        else:
            test = self._table(data, "test")
            testing = first_of_each_class(test, np.arange(len(test)), self.test_per_class)
        classes = tuple(range(len(train.class_names)))
        if len(set(train.labels[rows].tolist())) < len(classes):
            raise RequestError(
                f"{len(rows)} training images are too few for the {len(classes)} classes of {self.table}"
            )
        if train.class_names != test.class_names or len(testing) == 0:
            raise RequestError(f"the training and the test images of {self.table} do not fit together")
        flip = self.table not in UNMIRRORED
        if not self.base_to_new:
            learned, tested = (_among(0, *which, classes, self.table) for which in ((train, rows), (test, testing)))
            return Benchmark((learned,), (tested,), "class", flip)
        half = -(-len(classes) // 2)
        learned, base = (_among(0, *which, classes[:half], "base") for which in ((train, rows), (test, testing)))
        return Benchmark((learned,), (base, _among(1, test, testing, classes[half:], "new")), BaseToNew(), flip)

    def variant(self) -> str:
        return "-".join([self.table, *(["tune"] * (self.split == "tune")), *(["base-to-new"] * self.base_to_new)])

    def _shots(self, table: ImageTable) -> NDArray[np.int64]:
        rows = first_of_each_class(table, np.arange(len(table)), self.train_per_class)
        return few_shot(table, rows, self.shots, self.order_seed)

    def _dealt(self, table: ImageTable) -> NDArray[np.int64]:
        """The training rows, with the classes in turn: the first n rows are balanced for every n."""
        rows = first_of_each_class(table, np.arange(len(table)), self.train_per_class)
        labels = table.labels[rows]
        # rows are sorted by class: an image's turn is its position within its class
        turn = np.arange(len(rows)) - np.searchsorted(labels, labels)
        rows = rows[np.lexsort((labels, turn))]
        if self.train is None or (len(rows) < self.train and self.train_per_class is not None):
            return rows
        if not 1 <= self.train <= len(rows):
            raise RequestError(f"train is 1 to {len(rows)}, the training images of {self.table}, not {self.train}")
        return rows[: self.train]

    def _table(self, data: DataAccess, split: str) -> ImageTable:
        """One split of the table."""
        if self.table == "digits":
            return digits()[0 if split == "train" else 1]
        if self.table == "glyphs":
            return glyph_table(range(100), ["real"], GLYPHS[split], test=split == "test")
        files = TABLES[self.table]

        def read(name: str) -> Source:
            return data.parquet(self.table, name, files.image, files.label, hub=files.hub)

        if files.splits:
            return data.table(read(split), self.on_bad_image)
        return data.table(train_and_test(read("train"))[split == "test"], self.on_bad_image)


def _among(index: int, table: ImageTable, rows: NDArray[np.int64], classes: tuple[int, ...], name: str) -> Experience:
    """An experience of the rows whose labels are in `classes`."""
    return Experience(index, table, np.sort(rows[np.isin(table.labels[rows], classes)]), classes, name)
