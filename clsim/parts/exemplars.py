"""Which images a memory keeps: a balanced choice, and herding; and exemplar sets of the classes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim.errors import RunFailed
from clsim.events import State


def balanced(
    kept: NDArray[np.int64],
    arriving: NDArray[np.int64],
    labels: NDArray[np.int64],
    capacity: int,
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """The greedy balancing sampler of GDumb (Prabhu et al. 2020, algorithm 1): (m,) rows in memory, ascending.

    `kept` rows are in memory, `arriving` rows come one after another; `labels` are those of the whole table. An image
    is taken if its class has fewer than `capacity` divided by the number of classes met. If the memory is full, it
    takes the place of a random image of the largest class.
    """
    memory: dict[int, list[int]] = {}
    for row in kept.tolist():
        memory.setdefault(int(labels[row]), []).append(row)
    count = len(kept)
    for row in arriving.tolist():
        label = int(labels[row])
        if label in memory and len(memory[label]) * len(memory) >= capacity:
            continue
        if count == capacity:
            largest = max(memory.values(), key=len)
            largest.pop(int(draw.integers(len(largest))))
            count -= 1
        memory.setdefault(label, []).append(row)
        count += 1
    return np.sort(np.array([row for own in memory.values() for row in own], dtype=np.int64))


def herding(features: Tensor, count: int) -> list[int]:
    """Places of `count` of (n,D) features, with a mean near that of all: iCaRL (Rebuffi et al. 2017), algorithm 4.

    The k-th choice makes the mean of the first k nearest to the mean of all. So the first of them are the choice of a
    smaller number. No image is chosen twice; `count` may be above n.
    """
    features = features.double()
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free, chosen = torch.ones(len(features), dtype=torch.bool, device=features.device), list[int]()
    for k in range(1, min(count, len(features)) + 1):
        distances = (mean - (features + total) / k).norm(dim=1).masked_fill(~free, torch.inf)
        chosen.append(int(distances.argmin()))
        free[chosen[-1]] = False
        total = total + features[chosen[-1]]
    return chosen


def unit_features(s: State, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(n,D) float32 features of clean images, of unit length, and their (n,) labels. Raises RunFailed without features.

    They are the input of the learner's classifier in its present mode.
    """
    features, labels = [], []
    for batch in s.clean_batches(rows):
        found = s.outputs(batch).features
        if found is None:
            raise RunFailed(f"herding needs features: {type(s.learner).__name__} returns no Outputs with them")
        features.append(torch.nn.functional.normalize(found.float(), dim=1))
        labels.append(batch.known_labels)
    return torch.cat(features), torch.cat(labels)


class ExemplarSets:
    """The exemplars of each class, in the order of their choice by herding."""

    def __init__(self) -> None:
        self.kept: dict[int, list[int]] = {}  # class -> rows of the training table
        self.stored_bytes = 0  # of the images, uncompressed

    @property
    def rows(self) -> NDArray[np.int64]:
        """(m,) rows of all exemplars, ascending."""
        return np.sort(np.array([row for own in self.kept.values() for row in own], dtype=np.int64))

    def update(self, s: State, share: int) -> None:
        """Choose `share` exemplars of each class of the experience, and keep as many of each earlier class.

        A class that comes again is chosen from its new images and its exemplars so far.
        """
        table, rows = s.experience.table, np.union1d(s.experience.rows, self.rows)
        for c in s.experience.classes:
            own = rows[table.labels[rows] == c]
            if len(own):  # a memory may have taken the place of the experience's rows
                self.kept[c] = own[herding(unit_features(s, own)[0], share)].tolist()
        self.kept = {c: own[:share] for c, own in self.kept.items()}
        self.stored_bytes = table.bytes_of(self.rows)

    def state(self) -> dict[str, Any]:
        """Its content for a checkpoint."""
        return {"kept": dict(self.kept), "stored": self.stored_bytes}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.kept = {c: list(rows) for c, rows in state["kept"].items()}
        self.stored_bytes = state["stored"]
