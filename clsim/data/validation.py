"""Validation: a benchmark for choosing hyper-parameters, made of the training images of another benchmark alone."""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clsim.data.benchmark import Benchmark, Experience
from clsim.data.protocols import Protocol
from clsim.errors import RequestError

SHARE = 5  # one image of so many is for validation


class Validated(Protocol):
    """The rules of another protocol, with the usual metrics, on validation images of each training experience."""

    def __init__(self, rules: Protocol) -> None:
        self.name, self.new_classes = rules.name, rules.new_classes
        self.tells_task, self.has_target = rules.tells_task, rules.has_target
        self.counts_tasks = rules.counts_tasks


def validated(benchmark: Benchmark, experiences: int | Literal["all"]) -> Benchmark:
    """The first `experiences` of the training stream, each tested on a fifth of its own training images.

    The other four fifths are trained on. The images of a fifth are spread evenly over those of each class (and domain);
    a class with two images or more has at least one. No test image is in it, and of an unlabelled target no label.
    Choosing on the first experiences only is the protocol of Chaudhry et al. 2019 (arXiv:1812.00420, section 3).
    Raises RequestError if an experience has no class with two images.
    """
    learned = benchmark.train_stream if experiences == "all" else benchmark.train_stream[:experiences]
    pairs = [_divided(experience) for experience in learned]
    train, test = (tuple(stream) for stream in zip(*pairs, strict=True))
    return replace(benchmark, train_stream=train, test_stream=test, protocol=Validated(benchmark.rules))


def _divided(experience: Experience) -> tuple[Experience, Experience]:
    """The experience without its validation images, and these."""
    held = _held(experience)
    if not held.any():
        raise RequestError(f"{experience.name!r} has one image of each class: none can be kept for validation")
    chosen = np.sort(experience.rows[held])
    validation = replace(experience, rows=chosen, unlabelled=None, ordered=False, boundary=True)
    return replace(experience, rows=experience.rows[~held]), validation


def _held(experience: Experience) -> NDArray[np.bool_]:
    """(n,) true for the rows that are for validation."""
    rows = experience.rows
    keys = experience.table.kinds(rows)
    held = np.zeros(len(rows), dtype=bool)
    for key in np.unique(keys):
        places = np.flatnonzero(keys == key)
        places = places[np.argsort(rows[places], kind="stable")]  # the same images, in whatever order they arrive
        count = max(1, len(places) // SHARE) if len(places) > 1 else 0
        ranks = np.arange(len(places))
        held[places[(ranks + 1) * count // len(places) > ranks * count // len(places)]] = True
    return held
