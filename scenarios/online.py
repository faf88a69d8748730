"""Online: every image once, in a stream without boundaries, of any table."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data import online
from clsim.data.protocols import Online as Rules
from clsim.data.streams import Benchmark, DataAccess, Experience, OrderSeed, Scenario, class_order, first_of_each_class
from clsim.errors import RequestError
from clsim.scenarios._tables import mirrors, require_known, table_name, table_of


@dataclass(kw_only=True)
class Online(Scenario):
    """A stream in which every image comes once and nobody is told where a task begins; classes may come again.

    Methods are tested on the classes that have come so far, every `eval_every` images and at the end: a_auc is the mean
    of all these accuracies, a_last the last one (Koh et al. 2022, arXiv:2110.10031). The table is as in `transfer`.
    `order_seed` draws the order of classes and images.
    """

    table: str = (
        "digits"  # digits, glyphs, cifar100, cifar10, mnist, notmnist, svhn, fashion_mnist, usps, pacs, or PATH
    )
    schedule: Literal["si_blurry", "i_blurry", "gaussian", "disjoint"] = (
        "si_blurry"  # when classes come: Moon et al. 2023, Koh et al. 2022, around a time of their own, or in groups
    )
    tasks: int = 5  # groups of classes, of which methods are not told
    disjoint: int = 50  # percentage of classes that come in one task only (si_blurry, i_blurry)
    blurry: int = 10  # percentage of the other classes' images that come in other tasks (si_blurry, i_blurry)
    width: float = 0.1  # of gaussian: standard deviation of a class's time, as a share of the stream
    eval_every: int = 1000  # images of the stream between two evaluations
    image: str = ""  # of a path: the column, or array, of images; empty: the usual names
    label: str = ""  # of a path: the column, or array, of labels; empty: the usual names
    test_split: str = ""  # of a path: the split for testing; empty: test, or else val
    exclude: tuple[str, ...] = ()  # of a path: classes to leave out
    flip: bool | None = None  # whether a mirrored image keeps its class; none: yes, but for named digits and letters

    def __post_init__(self) -> None:
        require_known(self)
        online.require_percent(disjoint=self.disjoint, blurry=self.blurry)
        if self.tasks < 1 or self.eval_every < 1:
            raise RequestError("tasks and eval_every must be at least 1")
        if self.width <= 0:
            raise RequestError(f"width must be above 0, not {self.width}")

    def build(self, data: DataAccess) -> Benchmark:
        """One training experience with all classes, and a test experience for each class."""
        train, test = (table_of(self, data, split) for split in ("train", "test"))
        if train.class_names != test.class_names:
            raise RequestError(f"the training and the test images of {self.table} do not fit together")
        rows = first_of_each_class(train, np.arange(len(train)), self.train_per_class)
        testing = first_of_each_class(test, np.arange(len(test)), self.test_per_class)
        for found in (train.labels[rows], test.labels[testing]):
            if missing := set(range(len(train.class_names))) - set(found.tolist()):
                raise RequestError(f"no images of class {train.class_names[min(missing)]!r}")
        classes: list[int] = class_order(len(train.class_names), self.order_seed).tolist()
        arriving = rows[self._order(train.labels[rows], classes, self.order_seed)]
        stream = Experience(0, train, arriving, tuple(sorted(classes)), "the stream", ordered=True, boundary=False)
        tests = [
            Experience(label, test, testing[test.labels[testing] == label], (label,), train.class_names[label])
            for label in sorted(classes)
        ]
        return Benchmark((stream,), tuple(tests), Rules(), mirrors(self), eval_every=self.eval_every)

    def variant(self) -> str:
        return f"{table_name(self)}-{self.schedule}"

    def _order(self, labels: NDArray[np.int64], classes: list[int], order_seed: OrderSeed) -> NDArray[np.int64]:
        """(n,) positions of the images in order of arrival."""
        draw = np.random.default_rng([0 if order_seed == "seed" else max(order_seed, 0), 1])
        if self.schedule == "gaussian":
            return online.gaussian(labels, classes, self.width, draw)
        if self.schedule == "disjoint":
            return online.by_groups(labels, np.array_split(classes, self.tasks), draw)  # type: ignore[arg-type]
        schedule = online.si_blurry if self.schedule == "si_blurry" else online.i_blurry
        return np.concatenate(schedule(labels, classes, self.tasks, self.disjoint, self.blurry, draw))
