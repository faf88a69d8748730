"""The benchmark of a run: a scenario's `build`, and then every field that is set has an effect or is refused."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.data.benchmark import Benchmark, Experience
from clsim.data.streams import DataAccess, Scenario
from clsim.errors import RequestError

UNREAD = {
    "order_seed": "the order of this stream is fixed where the scenario is built",
    "on_bad_image": "no image files are decoded",
}  # field -> why a scenario does not read it


def made(scenario: Scenario, data: DataAccess, seed: int, defaults: Mapping[str, Any], name: str) -> Benchmark:
    """The benchmark of a run with this seed, which is also the order_seed if that is "seed".

    `defaults`: of the scenario's fields. A field with another value that `build` did not read is applied afterwards
    (train_per_class and test_per_class), or refused: RequestError, with the scenario's `name`.
    """
    read: set[str] = set()
    benchmark = _watched(for_seed(scenario, seed), read).build(data)
    if not isinstance(benchmark, Benchmark):
        raise RequestError(f"{type(scenario).__name__}.build must return a Benchmark, not {type(benchmark).__name__}")
    for field, default in defaults.items():
        value = getattr(scenario, field)
        if field in read or value == default:
            continue
        if field == "train_per_class" and not benchmark.rules.has_target:
            benchmark = replace(benchmark, train_stream=_first(benchmark.train_stream, value, field))
        elif field == "test_per_class" and not benchmark.rules.has_target:
            tested = [_first([each], value, field)[0] for each in benchmark.test_stream]
            benchmark = replace(benchmark, test_stream=tuple(tested))
        else:
            why = UNREAD.get(field, f"a stream of protocol {benchmark.rules.name} does not use it")
            raise RequestError(f"scenario.{field}={value} has no effect on {name}: {why}; leave it out")
    return benchmark


def for_seed(scenario: Scenario, seed: int) -> Scenario:
    """The scenario of the run with this seed: order_seed is a number."""
    if scenario.order_seed != "seed":
        return scenario
    changed = copy.copy(scenario)
    changed.order_seed = seed
    return changed


def _watched(scenario: Scenario, read: set[str]) -> Scenario:
    """The same scenario; the names of attributes that its methods read are added to `read`."""
    kind = type(scenario)

    def noted(self: Scenario, name: str) -> Any:
        read.add(name)
        return kind.__getattribute__(self, name)

    watched = copy.copy(scenario)
    watched.__class__ = type(kind.__name__, (kind,), {"__getattribute__": noted, "__module__": kind.__module__})
    return watched


def _first(stream: Sequence[Experience], count: int, field: str) -> tuple[Experience, ...]:
    """The experiences with the first `count` images of each class (and domain) of the whole stream."""
    if count < 1:
        raise RequestError(f"images per class must be at least 1, not {count}")
    keys = [each.table.kinds(each.rows) for each in stream]
    kept = np.split(_ranks(np.concatenate(keys)) < count, np.cumsum([len(key) for key in keys])[:-1])
    shorter = []
    for each, keep in zip(stream, kept, strict=True):
        if not keep.any():
            raise RequestError(f"{field}={count} leaves no images in {each.name!r}: its classes came before")
        rows = each.rows[keep]
        there = set(each.table.labels[rows].tolist())
        shorter.append(replace(each, rows=rows, classes=tuple(c for c in each.classes if c in there)))
    return tuple(shorter)


def _ranks(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many equal keys are in front of each."""
    order = np.argsort(keys, kind="stable")
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return ranks
