"""Streams: a table's rows divided into experiences. Names are those of Avalanche."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data import protocols
from clsim.data.benchmark import Benchmark, Experience, ExperienceInfo, Info, StreamInfo
from clsim.data.folders import read_folder
from clsim.data.formats import read_any, read_named
from clsim.data.protocols import Protocol
from clsim.data.raw import Wanted
from clsim.data.readers import Found, Hub, Source
from clsim.data.table import ImageTable
from clsim.errors import RequestError, unknown
from clsim.reads import READ

__all__ = [
    "Benchmark",
    "ClassScenario",
    "DataAccess",
    "Experience",
    "ExperienceInfo",
    "Info",
    "Scenario",
    "StreamInfo",
    "arrival",
    "class_groups",
    "class_incremental",
    "class_order",
    "domain_incremental",
    "few_shot",
    "first_of_each_class",
    "matching_name",
    "merged",
    "require_same_names",
    "same_name",
]

OrderSeed = int | Literal["seed"]


@dataclass(frozen=True)
class DataAccess:
    """Makes the tables of a scenario: it has the folders to search, and the size at which images are stored."""

    data_dir: Path | None
    cache_dir: Path
    side: int  # shorter side of stored decoded images, in pixels; smaller images of one size are not resized
    found: dict[str, Found] = field(default_factory=dict, compare=False, repr=False)  # by a table's fingerprint

    def parquet(
        self, folder: str, split: str, image: str, label: str, domain: str | None = None, hub: Hub | None = None
    ) -> Source:
        """One split, from `data_dir/folder/split*.parquet`, or torchvision's download, or the Hub's repository."""
        if self.data_dir is not None:
            READ.folders.add(self.data_dir / folder)
            READ.places.add(self.data_dir)
        return read_named(self.data_dir, folder, split, image, label, domain, hub)

    def images(self, wanted: Wanted, path: Path | None = None) -> tuple[Source, Source]:
        """Training and test images of a file or folder of any known format; see `read_any`. None: the data directory.

        A relative path is looked for in the data directory, and then in the current one.
        """
        if path is None:
            if self.data_dir is None:
                raise RequestError("no --data-dir is given: it must be a data set, e.g. a folder of class folders")
            READ.folders.add(self.data_dir)
            return read_any(self.data_dir, wanted)
        below = None if self.data_dir is None else self.data_dir / path
        READ.folders |= {path} if below is None else {path, below}
        return read_any(below if below is not None and below.exists() else path, wanted)

    def tree(self) -> Path:
        """The data directory as a tree of class folders. Raises RequestError if there is none."""
        if self.data_dir is None:
            raise RequestError("no --data-dir is given: it must be a folder of class folders")
        if not self.data_dir.is_dir():
            raise RequestError(f"no such data directory: {self.data_dir}")
        READ.folders.add(self.data_dir)
        return self.data_dir

    def folder(self, *below: str, domains: Sequence[str] = ()) -> Source:
        """Class folders in the data directory; if domains are named, inside a folder for each domain."""
        return read_folder(self.tree().joinpath(*below), domains, tree=self.tree())

    def table(self, source: Source, on_bad_image: str, one_size: bool = False) -> ImageTable:
        """The source, decoded. `one_size`: small images of several sizes are enlarged to the largest size found."""
        table = ImageTable.decode(source, self.side, self.cache_dir, on_bad_image, one_size)
        self.found[table.fingerprint] = source.found
        return table


@dataclass(kw_only=True)
class Scenario:
    """A stream as a plug-in: its fields are its configuration; `build` makes the benchmark.

    In a run, a field that is set but that `build` never reads is refused, because it would have no effect; only
    train_per_class and test_per_class are then applied to what `build` returned.
    """

    train_per_class: int | None = None  # training images of each class; none: all
    test_per_class: int | None = None  # test images of each class; none: all
    order_seed: int | Literal["seed"] = 0  # seed of class order (0: domains as listed); -1: as listed; seed: the run's
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
        for name in ("base_classes", "uneven", "order", "classes_per_experience"):
            default = getattr(type(self), name, None)
            if getattr(self, name, default) != default:
                raise RequestError(f"{name} is for streams in which new classes arrive; {reason}")


def class_order(num_classes: int, order_seed: OrderSeed, order: str = "random") -> NDArray[np.int64]:
    """The order in which classes arrive, from its own generator; the data set's order if the seed is -1.

    With order="pilot1993" it is that of ``np.random.seed(1993); np.random.permutation(num_classes)``, which published
    class-incremental results have used since iCaRL.
    """
    seed = _number(order_seed)
    if order == "pilot1993":
        return np.random.RandomState(1993).permutation(num_classes)  # NumPy's legacy generator
    return np.arange(num_classes) if seed == -1 else np.random.default_rng(seed).permutation(num_classes)


def arrival(order_seed: OrderSeed, count: int) -> list[int]:
    """The order in which `count` domains or sets arrive: as they are listed if the seed is 0 or -1, else drawn."""
    order: list[int] = class_order(count, -1 if order_seed == 0 else order_seed).tolist()
    return order


def _number(order_seed: OrderSeed) -> int:
    """The seed as a number. Raises RequestError for one that is too small, and for "seed" outside of a run."""
    if isinstance(order_seed, str):
        raise RequestError("order_seed=seed stands for the seed of a run; outside of runs it is a number")
    if order_seed < -1:
        raise RequestError(f"order_seed is -1 (the data set's order), at least 0, or seed, not {order_seed}")
    return order_seed


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
    key = table.kinds(rows)
    starts = np.flatnonzero(np.diff(key, prepend=-1))  # rows are sorted, so each class and domain is one block
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return rows[rank < count]


def few_shot(table: ImageTable, rows: NDArray[np.int64], shots: int | None, order_seed: OrderSeed) -> NDArray[np.int64]:
    """`shots` of `rows` in every class (and domain), drawn with `order_seed`; the first ones if that is -1.

    All of them if a class has no more, or if shots is None.
    """
    if shots is None:
        return rows
    if shots < 1:
        raise RequestError(f"shots must be at least 1, not {shots}")
    seed = _number(order_seed)
    drawn = rows if seed == -1 else rows[np.random.default_rng(seed).permutation(len(rows))]
    key = table.kinds(drawn)
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
    """The same classes in each experience, each from a new domain.

    They arrive in the order of the tables' domain names, or as `arrival` draws it from order_seed. Raises RequestError
    if a domain has no training images or no test images.
    """
    require_same_names(train, test)
    if isinstance(scenario, ClassScenario):
        scenario.refuse_class_fields("protocol=domain has none")
    order = arrival(scenario.order_seed, len(train.domain_names))
    names = tuple(train.domain_names[domain] for domain in order)

    def stream(table: ImageTable, count: int | None) -> tuple[Experience, ...]:
        if table.domains is None:
            raise RequestError("these images come from one domain; protocol=domain needs several")
        experiences = []
        for index, (domain, name) in enumerate(zip(order, names, strict=True)):
            rows = first_of_each_class(table, np.flatnonzero(table.domains == domain), count)
            if len(rows) == 0:
                raise RequestError(f"no images of domain {name!r}")
            classes = tuple(np.unique(table.labels[rows]).tolist())
            experiences.append(Experience(index, table, rows, classes, name, domain=name))
        return tuple(experiences)

    return Benchmark(
        stream(train, scenario.train_per_class), stream(test, scenario.test_per_class), "domain", flip, names
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
