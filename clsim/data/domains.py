"""Streams over the domains of a table: one after the other, or a labelled source with unlabelled targets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data.sources import Source, train_and_test
from clsim.data.streams import (
    Benchmark,
    ClassScenario,
    DataAccess,
    Experience,
    arrival,
    class_incremental,
    domain_incremental,
    few_shot,
    first_of_each_class,
    matching_name,
    require_same_names,
)
from clsim.data.table import ImageTable
from clsim.errors import RequestError


@dataclass(kw_only=True)
class DomainScenario(ClassScenario):
    """A scenario whose images come from several domains. Write `build`, with `domain_benchmark`, and `domains`."""

    domains: ClassVar[tuple[str, ...]] = ()  # the domains that pairs=all combines
    protocol: Literal["domain", "class", "pair", "targets"] = "domain"  # new domains, new classes, or adaptation
    source: str = ""  # the labelled domain (pair, targets)
    target: str = ""  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after another (targets); none: all except the source
    pairs: Literal["one", "all"] = "one"  # all: one run for each source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all

    def __post_init__(self) -> None:
        """Raises RequestError for fields about the class order if no new classes arrive."""
        super().__post_init__()
        if self.protocol != "class":
            self.refuse_class_fields(f"protocol={self.protocol} has none")

    def _seed_draws_images(self) -> bool:
        return self.shots is not None

    def variant(self) -> str:
        """The direction of an adaptation, ``Art-Clipart``; empty if all domains are learned."""
        if self.protocol not in ("pair", "targets"):
            return ""
        targets = (self.target,) if self.protocol == "pair" else self.targets or ("others",)
        return "-".join(("+".join(self.sources or (self.source,)), *targets)).replace(" ", "_")

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        """The fields for each ordered pair of domains if pairs=all."""
        if self.pairs == "one":
            return ({},)
        if self.protocol != "pair" or self.sources:
            raise RequestError("pairs=all is for protocol=pair, from one source to one target")
        return [{"pairs": "one", "source": a, "target": b} for a, b in itertools.permutations(self.domains, 2)]


def train_test_split(data: DataAccess, source: Source, on_bad_image: str) -> tuple[ImageTable, ImageTable]:
    """Training and test images of a set without own splits: a fixed fifth is for testing, by a hash of the paths."""
    train, test = train_and_test(source)
    return data.table(train, on_bad_image), data.table(test, on_bad_image)


def domain_benchmark(
    scenario: DomainScenario, train: ImageTable, test: ImageTable, flip: bool = True, classes_per_experience: int = 0
) -> Benchmark:
    """The stream for `scenario.protocol` over the tables' domains. Raises RequestError as those streams do."""
    if scenario.protocol in ("pair", "targets"):
        return adaptation(scenario, train, test, flip)
    if scenario.sources or scenario.targets:
        raise RequestError("sources and targets are for protocol=pair and protocol=targets")
    if scenario.protocol == "domain":
        benchmark = domain_incremental(scenario, train, test, flip)
    else:
        benchmark = class_incremental(scenario, train, test, classes_per_experience, flip=flip)
    stream = (replace(each, rows=_shots(scenario, train, each.rows)) for each in benchmark.train_stream)
    return replace(benchmark, train_stream=tuple(stream))


def _shots(scenario: DomainScenario, table: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows with labels: all of them, without a look at order_seed, or the few that it draws."""
    return rows if scenario.shots is None else few_shot(table, rows, scenario.shots, scenario.order_seed)


def adaptation(scenario: DomainScenario, train: ImageTable, test: ImageTable, flip: bool = True) -> Benchmark:
    """A labelled source with one unlabelled target, learned together, or with several targets, one after another.

    A pair is tested on the target's training images (as in published results), and on test images of the target and of
    the source. A sequence is tested on the training images of each of its targets. In the training table that
    strategies receive, every image that is not from the source has the label -1. Raises RequestError for unknown
    domains, and if the source is among the targets.
    """
    require_same_names(train, test)
    sources, targets = _chosen(scenario, train.domain_names)

    def rows(table: ImageTable, domains: Sequence[str], count: int | None) -> NDArray[np.int64]:
        assert table.domains is not None
        wanted = np.isin(table.domains, [table.domain_names.index(domain) for domain in domains])
        found = first_of_each_class(table, np.flatnonzero(wanted), count)
        if len(found) == 0:
            raise RequestError(f"no images of domain {domains[0]!r}")
        return found

    learned = _shots(scenario, train, rows(train, sources, scenario.train_per_class))
    hidden = np.full(len(train), -1, dtype=np.int64)
    hidden[learned] = train.labels[learned]
    unlabelled = replace(train, labels=hidden)
    classes = tuple(np.unique(train.labels[learned]).tolist())
    adapted = [rows(train, [target], scenario.train_per_class) for target in targets]
    title = " + ".join(sources)
    stream = tuple(
        Experience(i, unlabelled, learned, classes, f"{title} > {target}", target, unlabelled=found)
        for i, (target, found) in enumerate(zip(targets, adapted, strict=True))
    )
    columns = [(target, train, found, target) for target, found in zip(targets, adapted, strict=True)]
    if scenario.protocol == "pair":
        (target,) = targets
        columns = [
            ("target", train, adapted[0], target),
            ("target test", test, rows(test, [target], scenario.test_per_class), target),
            ("source test", test, rows(test, sources, scenario.test_per_class), title),
        ]
    tested = tuple(
        Experience(i, table, chosen, tuple(np.unique(table.labels[chosen]).tolist()), name, domain)
        for i, (name, table, chosen, domain) in enumerate(columns)
    )
    return Benchmark(stream, tested, scenario.protocol, flip, domain_names=(title, *targets))


def _chosen(scenario: DomainScenario, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the source domains and of the targets, as spelled in the table."""
    sources = [matching_name("domain", name, known) for name in scenario.sources or (scenario.source,)]
    if scenario.protocol == "pair":
        if scenario.targets:
            raise RequestError("targets is for protocol=targets; protocol=pair has one target")
        targets = [matching_name("domain", scenario.target, known)]
    else:
        targets = [matching_name("domain", name, known) for name in scenario.targets]
        targets = targets or [name for name in known if name not in sources]
        targets = [targets[i] for i in arrival(scenario.order_seed, len(targets))]
    both = [name for name in sources if name in targets]
    if both:
        raise RequestError(f"{both[0]!r} is both source and target; they must be different domains")
    for names in (sources, targets):
        if len(set(names)) < len(names):
            raise RequestError(f"{', '.join(names)}: each domain can be named once")
    return sources, targets
