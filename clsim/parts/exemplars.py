"""Which images a memory keeps: a balanced choice, and herding."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
