"""Streams: a table's rows divided into experiences. Names are those of Avalanche."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data import protocols
from clsim.data.folders import read_folder
from clsim.data.formats import read_any, read_named
from clsim.data.protocols import Protocol
from clsim.data.raw import Wanted
from clsim.data.readers import Hub, Source
from clsim.data.table import ImageTable
from clsim.errors import RequestError, unknown


@dataclass(frozen=True)
class StreamInfo:
    """What a strategy may know before training: names and protocol, never rows or test data."""

    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    protocol: str  # the protocol's name
    num_experiences: int
    tells_task: bool = False  # whether test images come with the index of their experience
    has_target: bool = False  # whether training batches have an unlabelled target

    @property
    def num_classes(self) -> int:
        """Classes of the whole stream."""
        return len(self.class_names)


Info = StreamInfo  # the old name


@dataclass(frozen=True)
class ExperienceInfo:
    """What a strategy may know about an experience when it begins; stored in checkpoints. It has no rows or images."""

    index: int
    name: str
    classes: tuple[int, ...]  # sorted
    num_images: int
    domain: str | None = None
    task_label: int | None = None  # only where the protocol reveals it


@dataclass(frozen=True)
class Experience:
    """A part of a stream that is learned or tested at one time."""

    index: int
    table: ImageTable
    rows: NDArray[np.int64]  # (n,) rows of the table, ascending; if `ordered`, in order of arrival
    classes: tuple[int, ...]  # sorted
    name: str
    domain: str | None = None
    task_label: int | None = None  # only where the protocol reveals it
    unlabelled: NDArray[np.int64] | None = None  # rows of the target, without labels
    ordered: bool = False  # whether each image is learned once, in the order of `rows`
    boundary: bool = True  # whether methods know its beginning, its end and its classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) labels of the rows."""
        return self.table.labels[self.rows]

    @property
    def info(self) -> ExperienceInfo:
        """What a strategy may know about it."""
        return ExperienceInfo(self.index, self.name, self.classes, len(self.rows), self.domain, self.task_label)


@dataclass(frozen=True)
class Benchmark:
    """Training experiences and their test experiences."""

    train_stream: tuple[Experience, ...]
    test_stream: tuple[Experience, ...]
    protocol: Protocol | str  # an object, or the name of a protocol in clsim.data.protocols
    flip: bool = True  # whether a mirrored image keeps its class
    domain_names: tuple[str, ...] = ()  # names that strategies see; empty: those of the table

    @property
    def train_table(self) -> ImageTable:
        """The table of every training experience."""
        return self.train_stream[0].table

    @property
    def test_table(self) -> ImageTable:
        """The table of the first test experience."""
        return self.test_stream[0].table

    @property
    def tables(self) -> tuple[ImageTable, ...]:
        """The training table, then the tables of the test experiences, each once."""
        every = [self.train_table, *(experience.table for experience in self.test_stream)]
        return tuple(table for i, table in enumerate(every) if all(table is not other for other in every[:i]))

    @property
    def rules(self) -> Protocol:
        """The protocol as an object. Raises RequestError for an unknown name."""
        return protocols.protocol(self.protocol)

    @property
    def info(self) -> StreamInfo:
        """What strategies may know about the stream."""
        table, rules = self.train_table, self.rules
        domains = self.domain_names or table.domain_names
        experiences = len(self.train_stream)
        return StreamInfo(table.class_names, domains, rules.name, experiences, rules.tells_task, rules.has_target)


@dataclass(frozen=True)
class DataAccess:
    """Makes the tables of a scenario: it has the folders to search, and the size at which images are stored."""

    data_dir: Path | None
    cache_dir: Path
    side: int  # shorter side of stored decoded images, in pixels; smaller images of one size are not resized

    def parquet(
        self, folder: str, split: str, image: str, label: str, domain: str | None = None, hub: Hub | None = None
    ) -> Source:
        """One split, from `data_dir/folder/split*.parquet`, or torchvision's download, or the Hub's repository."""
        return read_named(self.data_dir, folder, split, image, label, domain, hub)

    def images(self, wanted: Wanted, path: Path | None = None) -> tuple[Source, Source]:
        """Training and test images of a file or folder of any known format; see `read_any`. None: the data directory.

        A relative path is looked for in the data directory, and then in the current one.
        """
        if path is None:
            if self.data_dir is None:
                raise RequestError("no --data-dir is given: it must be a data set, e.g. a folder of class folders")
            return read_any(self.data_dir, wanted)
        below = None if self.data_dir is None else self.data_dir / path
        return read_any(below if below is not None and below.exists() else path, wanted)

    def tree(self) -> Path:
        """The data directory as a tree of class folders. Raises RequestError if there is none."""
        if self.data_dir is None:
            raise RequestError("no --data-dir is given: it must be a folder of class folders")
        if not self.data_dir.is_dir():
            raise RequestError(f"no such data directory: {self.data_dir}")
        return self.data_dir

    def folder(self, *below: str, domains: Sequence[str] = ()) -> Source:
        """Class folders in the data directory; if domains are named, inside a folder for each domain."""
        return read_folder(self.tree().joinpath(*below), domains, tree=self.tree())

    def table(self, source: Source, on_bad_image: str, one_size: bool = False) -> ImageTable:
        """The source, decoded. `one_size`: small images of several sizes are enlarged to the largest size found."""
        return ImageTable.decode(source, self.side, self.cache_dir, on_bad_image, one_size)


@dataclass(kw_only=True)
class Scenario:
    """A stream as a plug-in: its fields are its configuration; `build` makes the benchmark."""

    train_per_class: int | None = None  # training images of each class; none: all
    test_per_class: int | None = None  # test images of each class; none: all
    order_seed: int = 0  # seed of the class order, independent of the run's seed; -1: the data set's order
    on_bad_image: Literal["stop", "skip"] = "stop"  # what to do with images that cannot be decoded

    def build(self, data: DataAccess) -> Benchmark:
        """The benchmark. Raises RequestError if the fields or the data do not allow it."""
        raise NotImplementedError

    def variant(self) -> str:
        """A text that is appended to the scenario's name in the run directory, e.g. ``Art-Clipart``; usually empty."""
        return ""

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        """The changed fields for each run of this scenario; usually one run without changes."""
        return ({},)


@dataclass(kw_only=True)
class ClassScenario(Scenario):
    """A scenario that can bring new classes in each experience; `class_incremental` reads its fields.

    The `__post_init__` of a subclass must call `super().__post_init__()`.
    """

    base_classes: int | None = None  # classes of the first experience; none: classes_per_experience
    uneven: bool = False  # whether the last experience may have fewer classes than the others
    order: Literal["random", "pilot1993"] = "random"  # class order: from order_seed, or that of PILOT, iCaRL and DER

    def __post_init__(self) -> None:
        """Raises RequestError if order_seed is set but has no effect: a sweep over it would repeat one run."""
        if self.order == "pilot1993" and self.order_seed != type(self).order_seed and not self._seed_draws_images():
            raise RequestError(
                f"order=pilot1993 is one fixed order, which order_seed={self.order_seed} does not change; "
                "leave out one of the two"
            )

    def _seed_draws_images(self) -> bool:
        """Whether order_seed decides more than the order of classes."""
        return False

    def refuse_class_fields(self, reason: str) -> None:
        """Raises RequestError with `reason` if one of the fields about new classes is set but has no effect."""
        for name in ("base_classes", "uneven", "order"):
            if getattr(self, name) != getattr(type(self), name):
                raise RequestError(f"{name} is for streams in which new classes arrive; {reason}")


def class_order(num_classes: int, order_seed: int, order: str = "random") -> NDArray[np.int64]:
    """The order in which classes arrive, from its own generator; the data set's order if the seed is -1.

    With order="pilot1993" it is that of ``np.random.seed(1993); np.random.permutation(num_classes)``, which published
    class-incremental results have used since iCaRL.
    """
    if order_seed < -1:
        raise RequestError(f"order_seed is -1 (the data set's order) or at least 0, not {order_seed}")
    if order == "pilot1993":
        return np.random.RandomState(1993).permutation(num_classes)  # NumPy's legacy generator
    return np.arange(num_classes) if order_seed == -1 else np.random.default_rng(order_seed).permutation(num_classes)


def class_groups(scenario: Scenario, num_classes: int, classes_per_experience: int) -> list[list[int]]:
    """The classes of each experience in order of arrival: first `base_classes`, if set, then
    `classes_per_experience` at a time.

    Raises RequestError if the classes do not divide evenly and the last group may not be smaller (`uneven`): no class
    is left out silently.
    """
    base, uneven, order = None, False, "random"
    if isinstance(scenario, ClassScenario):
        base, uneven, order = scenario.base_classes, scenario.uneven, scenario.order
    if base is not None and not 1 <= base <= num_classes:
        raise RequestError(f"base_classes is 1 to {num_classes}, the number of classes, not {base}")
    left = num_classes - (base or 0)
    if classes_per_experience < 1 or (left % classes_per_experience and not uneven):
        divisors = ", ".join(str(d) for d in range(1, left + 1) if left % d == 0)
        which = f"{left} classes" if base is None else f"the {left} classes that base_classes={base} leaves"
        raise RequestError(
            f"classes_per_experience={classes_per_experience} does not divide {which} evenly; one of {divisors} does"
            + ", or scenario.uneven=true makes the last experience smaller" * (classes_per_experience > 0)
        )
    arriving: list[int] = class_order(num_classes, scenario.order_seed, order).tolist()
    starts = range(num_classes - left, num_classes, classes_per_experience)
    first = [] if base is None else [arriving[:base]]
    return first + [arriving[start : start + classes_per_experience] for start in starts]


def first_of_each_class(table: ImageTable, rows: NDArray[np.int64], count: int | None) -> NDArray[np.int64]:
    """The first `count` of `rows` in every class (and domain); all if count is None."""
    if count is None:
        return rows
    if count < 1:
        raise RequestError(f"images per class must be at least 1, not {count}")
    key = table.labels[rows]
    if table.domains is not None:
        key = key + table.domains[rows] * len(table.class_names)
    starts = np.flatnonzero(np.diff(key, prepend=-1))  # rows are sorted, so each class and domain is one block
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return rows[rank < count]


def few_shot(table: ImageTable, rows: NDArray[np.int64], shots: int | None, order_seed: int) -> NDArray[np.int64]:
    """`shots` of `rows` in every class (and domain), drawn with `order_seed`; the first ones if that is -1.

    All of them if a class has no more, or if shots is None.
    """
    if shots is None:
        return rows
    if shots < 1:
        raise RequestError(f"shots must be at least 1, not {shots}")
    drawn = rows if order_seed == -1 else rows[np.random.default_rng(order_seed).permutation(len(rows))]
    key = table.labels[drawn]
    if table.domains is not None:
        key = key + table.domains[drawn] * len(table.class_names)
    place = np.argsort(key, kind="stable")
    rank = np.empty(len(drawn), dtype=np.int64)
    rank[place] = np.arange(len(drawn)) - np.searchsorted(key[place], key[place])
    return np.sort(drawn[rank < shots])


def class_incremental(
    scenario: Scenario,
    train: ImageTable,
    test: ImageTable,
    classes_per_experience: int,
    protocol: str | Protocol = "class",
    flip: bool = True,
    groups: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] = (),
) -> Benchmark:
    """New classes in each experience: the groups from `class_groups`, or `groups` if given.

    Raises RequestError as `class_groups` does, and for a class without images.
    """
    require_same_names(train, test)
    rules = protocols.protocol(protocol)
    if groups is None:
        groups = class_groups(scenario, len(train.class_names), classes_per_experience)
    elif isinstance(scenario, ClassScenario):
        scenario.refuse_class_fields("the classes of this stream's experiences are given")

    def stream(table: ImageTable, count: int | None) -> tuple[Experience, ...]:
        experiences = []
        for index, group in enumerate(groups):
            rows = first_of_each_class(table, np.flatnonzero(np.isin(table.labels, group)), count)
            classes = tuple(sorted(int(c) for c in group))
            missing = set(classes) - set(table.labels[rows].tolist())
            if missing:
                raise RequestError(f"no images of class {table.class_names[min(missing)]!r}")
            name = names[index] if names else f"classes {_spans(classes)}"
            experiences.append(
                Experience(index, table, rows, classes, name, task_label=index if rules.tells_task else None)
            )
        return tuple(experiences)

    return Benchmark(
        stream(train, scenario.train_per_class), stream(test, scenario.test_per_class), protocol=protocol, flip=flip
    )


def domain_incremental(scenario: Scenario, train: ImageTable, test: ImageTable, flip: bool = True) -> Benchmark:
    """The same classes in each experience, each from a new domain, in the order of the tables' domain names.

    Raises RequestError if a domain has no training images or no test images.
    """
    require_same_names(train, test)
    if isinstance(scenario, ClassScenario):
        scenario.refuse_class_fields("protocol=domain has none")

    def stream(table: ImageTable, count: int | None) -> tuple[Experience, ...]:
        if table.domains is None:
            raise RequestError("these images come from one domain; protocol=domain needs several")
        experiences = []
        for index, name in enumerate(table.domain_names):
            rows = first_of_each_class(table, np.flatnonzero(table.domains == index), count)
            if len(rows) == 0:
                raise RequestError(f"no images of domain {name!r}")
            classes = tuple(np.unique(table.labels[rows]).tolist())
            experiences.append(Experience(index, table, rows, classes, name, domain=name))
        return tuple(experiences)

    return Benchmark(
        stream(train, scenario.train_per_class), stream(test, scenario.test_per_class), protocol="domain", flip=flip
    )


def require_same_names(train: ImageTable, test: ImageTable) -> None:
    """Labels are positions in the list of names, so both splits must have the same list."""
    for kind, ours, theirs in (
        ("class", train.class_names, test.class_names),
        ("domain", train.domain_names, test.domain_names),
    ):
        if ours != theirs:
            odd = sorted(set(ours) ^ set(theirs))
            what = f"{kind} {odd[0]!r} is in only one of them" if odd else f"their {kind} names are ordered differently"
            raise RequestError(f"the training and the test images do not fit together: {what}")


def _spans(classes: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> '0-2 5'."""
    text = " ".join(map(str, classes))
    runs = np.split(np.asarray(classes), np.flatnonzero(np.diff(classes) != 1) + 1)
    short = " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)
    return min(text, short, key=len)


def merged(stream: Sequence[Experience]) -> Experience:
    """All experiences of a stream joined into one, with the index of the last."""
    return replace(
        stream[-1],
        rows=np.sort(np.concatenate([experience.rows for experience in stream])),
        classes=tuple(sorted({c for experience in stream for c in experience.classes})),
        name="all at once",
        domain=None,
        task_label=None,
    )


def same_name(a: str, b: str) -> bool:
    """Whether two domain names match; case, spaces and underscores are ignored."""
    return re.sub(r"[\s_]+", "", a).lower() == re.sub(r"[\s_]+", "", b).lower()


def matching_name(kind: str, name: str, known: Sequence[str]) -> str:
    """The name in `known` that matches `name` (see `same_name`). Raises RequestError with the list if none does."""
    for candidate in known:
        if same_name(name, candidate):
            return candidate
    raise unknown(kind, name, known)
