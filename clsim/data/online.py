"""Orders of arrival for streams without boundaries: every image comes once, and classes come and go."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clsim.errors import RequestError

Labels = NDArray[np.int64]  # (n,) of the images
Order = NDArray[np.int64]  # (n,) positions of the images, in order of arrival


def by_groups(labels: Labels, groups: Sequence[Sequence[int]], draw: np.random.Generator) -> Order:
    """One group of classes after another; within a group, images arrive at random."""
    return np.concatenate([draw.permutation(np.flatnonzero(np.isin(labels, group))) for group in groups])


def gaussian(labels: Labels, classes: Sequence[int], width: float, draw: np.random.Generator) -> Order:
    """Every class has a time, equally spaced over the stream; its images arrive around it.

    `width`: standard deviation, as a share of the stream. Wang et al. 2022 (L2P, arXiv:2112.08654), section 5.1, and
    Shanahan et al. 2021, arXiv:2104.13046.
    """
    times = np.empty(len(classes))
    times[np.asarray(classes)] = (np.arange(len(classes)) + 0.5) / len(classes)
    return np.argsort(times[labels] + width * draw.standard_normal(len(labels)), kind="stable")


def i_blurry(
    labels: Labels, classes: Sequence[int], tasks: int, disjoint: int, blurry: int, draw: np.random.Generator
) -> list[Order]:
    """i-Blurry-N-M (Koh et al. 2022, arXiv:2110.10031): the images of each task, in order of arrival.

    N = `disjoint` % of the classes are in one task only. Of the images of the others, M = `blurry` % are spread evenly
    over the tasks that are not their class's own. Both kinds are dealt to the tasks in turn.
    """
    alone = round(len(classes) * disjoint / 100)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(tasks)]
    for place, label in enumerate(classes):
        images = draw.permutation(np.flatnonzero(labels == label))
        own = (place if place < alone else place - alone) % tasks
        away = 0 if place < alone or tasks == 1 else round(len(images) * blurry / 100)
        parts[own].append(images[away:])
        others = [task for task in range(tasks) if task != own]
        for task, some in zip(others, np.array_split(images[:away], max(1, len(others))), strict=False):
            parts[task].append(some)
    return [draw.permutation(np.concatenate(each)) if each else np.empty(0, np.int64) for each in parts]


def si_blurry(
    labels: Labels, classes: Sequence[int], tasks: int, disjoint: int, blurry: int, draw: np.random.Generator
) -> list[Order]:
    """Si-Blurry (Moon et al. 2023, arXiv:2308.09303): the images of each task, in order of arrival.

    The first N = `disjoint` % of the classes are cut into tasks at random places, and so are the others. M = `blurry` %
    of the images of the others are taken out of their tasks, shuffled, and dealt back at random places. A task may be
    empty.
    """
    alone = round(len(classes) * disjoint / 100)
    own = _cut(np.asarray(classes[:alone], dtype=np.int64), tasks, draw)
    shared = _cut(np.asarray(classes[alone:], dtype=np.int64), tasks, draw)
    moving = np.flatnonzero(np.isin(labels, classes[alone:]))
    moving = draw.permutation(moving)[: round(len(moving) * blurry / 100)]
    dealt = _cut(moving, tasks, draw)
    parts = []
    for task in range(tasks):
        kept = np.setdiff1d(np.flatnonzero(np.isin(labels, np.concatenate([own[task], shared[task]]))), moving)
        parts.append(draw.permutation(np.concatenate([kept, dealt[task]])))
    return parts


def _cut(items: NDArray[np.int64], parts: int, draw: np.random.Generator) -> list[NDArray[np.int64]]:
    """The items in parts of random size."""
    return np.split(items, np.sort(draw.integers(0, len(items) + 1, parts - 1)))


def require_percent(**values: int) -> None:
    """Raises RequestError for a value that is no percentage."""
    for name, value in values.items():
        if not 0 <= value <= 100:
            raise RequestError(f"{name} is a percentage, 0 to 100, not {value}")
