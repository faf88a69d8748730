"""Benchmarks: experiences over tables, with what strategies may know of them. Names are those of Avalanche."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clsim.data import protocols
from clsim.data.protocols import Protocol
from clsim.data.table import ImageTable


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
    eval_every: int | None = None  # images between evaluations inside an experience, unless --eval-every says otherwise

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
