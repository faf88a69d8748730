"""Transfer: one experience with few images, to compare tuners (VTAB-1k, Zhai et al. 2019, arXiv:1910.04867)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data.protocols import BaseToNew
from clsim.data.streams import Benchmark, DataAccess, Experience, Scenario, few_shot, first_of_each_class
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.scenarios._tables import mirrors, require_known, table_name, table_of

TUNE_SHARE = 0.2  # of the training images, held out to choose hyper-parameters: VTAB-1k's 800 and 200


@dataclass(kw_only=True)
class Transfer(Scenario):
    """One experience of 1000 training images, all classes together, with VTAB-1k's protocol.

    Choose hyper-parameters with split=tune: it trains on 80 % of the training images and tests on the other 20 %; test
    images are not read. Then train on all of them with split=final and use the result of the last epoch. The training
    images are balanced: the numbers of images per class differ by at most one, if there are enough images. The 80 %
    and the 20 % are balanced, too.

    The table is one of the names above, or the path of a data set of any format that the scenario `folder` reads,
    relative to --data-dir or to the current directory.

    For few-shot learning use `shots` in place of `train`. base_to_new=true is CoCoOp's protocol (Zhou et al. 2022,
    arXiv:2203.05557): the first half of the classes is learned, and each half is tested among its own classes.
    """

    table: str = (
        "digits"  # digits, glyphs, cifar100, cifar10, mnist, notmnist, svhn, fashion_mnist, usps, pacs, or PATH
    )
    train: int | None = 1000  # training images; none: all
    split: Literal["final", "tune"] = "final"  # tune: a fifth of the training images are the test images
    shots: int | None = None  # training images of each class, drawn by order_seed, in place of `train`
    base_to_new: bool = False  # train on the first half of the classes; test each half among its own classes
    image: str = ""  # of a path: the column, or array, of images; empty: the usual names
    label: str = ""  # of a path: the column, or array, of labels; empty: the usual names
    test_split: str = ""  # of a path: the split for testing; empty: test, or else val
    exclude: tuple[str, ...] = ()  # of a path: classes to leave out
    flip: bool | None = None  # whether a mirrored image keeps its class; none: yes, but for named digits and letters

    def __post_init__(self) -> None:
        if self.split == "tune" and (self.shots is not None or self.base_to_new):
            raise RequestError("split=tune is for train=N, without shots and base_to_new")
        require_known(self)

    def build(self, data: DataAccess) -> Benchmark:
        """One training and one test experience with all classes of the table; base_to_new: one test for each half."""
        train = table_of(self, data, "train")
        rows = first_of_each_class(train, np.arange(len(train)), self.train_per_class)
        rows = self._dealt(train, rows) if self.shots is None else few_shot(train, rows, self.shots, self.order_seed)
        if self.split == "tune":
            test, cut = train, len(rows) - round(TUNE_SHARE * len(rows))
            rows, testing = rows[:cut], rows[cut:]
        else:
            test = table_of(self, data, "test")
            testing = first_of_each_class(test, np.arange(len(test)), self.test_per_class)
        classes = tuple(range(len(train.class_names)))
        if len(set(train.labels[rows].tolist())) < len(classes):
            raise RequestError(
                f"{len(rows)} training images are too few for the {len(classes)} classes of {self.table}"
            )
        if train.class_names != test.class_names or len(testing) == 0:
            raise RequestError(f"the training and the test images of {self.table} do not fit together")
        flip = mirrors(self)
        if not self.base_to_new:
            learned, tested = (_among(0, *which, classes, self.table) for which in ((train, rows), (test, testing)))
            return Benchmark((learned,), (tested,), "class", flip)
        half = -(-len(classes) // 2)
        learned, base = (_among(0, *which, classes[:half], "base") for which in ((train, rows), (test, testing)))
        return Benchmark((learned,), (base, _among(1, test, testing, classes[half:], "new")), BaseToNew(), flip)

    def variant(self) -> str:
        return "-".join([table_name(self), *(["tune"] * (self.split == "tune")), *(["base-to-new"] * self.base_to_new)])

    def _dealt(self, table: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The training rows, with the classes in turn: the first n rows are balanced for every n."""
        labels = table.labels[rows]
        # rows are sorted by class: an image's turn is its position within its class
        turn = np.arange(len(rows)) - np.searchsorted(labels, labels)
        rows = rows[np.lexsort((labels, turn))]
        if self.train is None or (len(rows) < self.train and self.train_per_class is not None):
            return rows
        if not 1 <= self.train <= len(rows):
            raise RequestError(f"train is 1 to {len(rows)}, the training images of {self.table}, not {self.train}")
        return rows[: self.train]


def _among(index: int, table: ImageTable, rows: NDArray[np.int64], classes: tuple[int, ...], name: str) -> Experience:
    """An experience of the rows whose labels are in `classes`."""
    return Experience(index, table, np.sort(rows[np.isin(table.labels[rows], classes)]), classes, name)
