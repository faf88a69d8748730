"""Streams to and from Avalanche (Carta et al. 2023, arXiv:2302.01766): to run its benchmarks in clsim, and to compare
with its strategies.

Importing Avalanche takes seconds and replaces `torch.utils.data.Dataset.__add__`. So only `to_avalanche` imports it,
and only when it is called.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from clsim.data import protocols
from clsim.data.protocols import Protocol
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec, evaluation
from clsim.errors import RequestError

# to Avalanche


class _Images(Dataset[tuple[Tensor, int]]):
    """An experience's rows in order: ((3,S,S) clean image, label)."""

    def __init__(self, experience: Experience, pixels: InputSpec) -> None:
        self.experience = experience
        self.pixels = pixels
        self.targets: list[int] = experience.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        (image,) = self.experience.table.pixels(self.experience.rows[i : i + 1])
        return evaluation(torch.from_numpy(image)[None], self.pixels)[0], self.targets[i]


def to_avalanche(benchmark: Benchmark, pixels: InputSpec) -> Any:
    """The benchmark as an Avalanche `CLScenario` with `train_stream` and `test_stream`.

    Experiences, their order, labels and task labels (0 where there are none) are the same. Items are (image, label,
    task label). Images are those of evaluation: (3,S,S), cropped, resized and normalised for `pixels`
    (`backbone.image.pixels`), never augmented. Raises RequestError for what Avalanche's streams cannot express:
    unlabelled images, images in a fixed order, and experiences without boundaries.
    """
    from avalanche.benchmarks.scenarios import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset, TaskLabels
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    def converted(experience: Experience) -> Any:
        if experience.unlabelled is not None:
            raise RequestError(f"Avalanche has no place for the unlabelled images of {experience.name!r}")
        if experience.ordered or not experience.boundary:
            raise RequestError(
                f"Avalanche shuffles the images of {experience.name!r}, and shows where it begins and ends"
            )
        images = _Images(experience, pixels)
        tasks = ConstantSequence(experience.task_label or 0, len(images))
        attributes = [DataAttribute(images.targets, "targets"), TaskLabels(tasks)]
        return TaskAwareSupervisedClassificationDataset([images], data_attributes=attributes)

    train = [converted(experience) for experience in benchmark.train_stream]
    test = [converted(experience) for experience in benchmark.test_stream]
    return with_task_labels(with_classes_timeline(benchmark_from_datasets(train=train, test=test)))


# from Avalanche


def from_avalanche(
    benchmark: Any,
    protocol: str | Protocol = "class",
    class_names: Sequence[str] | None = None,
    flip: bool = True,
) -> Benchmark:
    """An Avalanche classification benchmark with `train_stream` and `test_stream`, read into memory.

    Call it in the `build` of a scenario. Items are (image, label, ...). The image is a PIL image or a (1 or 3,H,W)
    tensor, uint8 or float in [0, 1], after the transforms of the "eval" group. Make classic benchmarks with
    ``train_transform=None, eval_transform=None``, because clsim crops, flips and normalises itself. Give them a fixed
    `seed` or class order, or the scenario's ``self.order_seed``; otherwise every process has a different stream. A run
    applies the scenario's train_per_class and test_per_class to the result, and refuses an order_seed that `build`
    does not read.

    `protocol` is "class", "domain", "task", or a protocol of your own. Without `class_names`, the names of classes are
    their numbers. Where the protocol has no new classes (as in "domain"), each experience is a domain. `flip`: whether
    a mirrored image keeps its class.

    Raises RequestError if images differ in size or are normalised already, if training and test experiences do not
    pair up, or for a protocol with a target.
    """
    rules = protocols.protocol(protocol)
    if rules.has_target:
        raise RequestError(f"protocol {rules.name} needs unlabelled images of a target; Avalanche's streams have none")
    streams = [list(benchmark.train_stream), list(benchmark.test_stream)]
    if len(streams[0]) != len(streams[1]):
        raise RequestError(
            f"{len(streams[0])} training experiences need as many test experiences, one each, not {len(streams[1])}"
        )
    if class_names is None:
        num_classes = 1 + max(int(c) for stream in streams for experience in stream for c in experience.dataset.targets)
        class_names = [str(c) for c in range(num_classes)]
    train, test = (_stream(stream, rules, tuple(class_names)) for stream in streams)
    return Benchmark(train, test, rules, flip)


def _stream(stream: Sequence[Any], rules: Protocol, class_names: tuple[str, ...]) -> tuple[Experience, ...]:
    """A stream's items in one table, and the experiences over it."""
    datasets = [experience.dataset.eval() for experience in stream]  # its own transforms would augment training images
    labels = np.array([int(label) for dataset in datasets for label in dataset.targets], dtype=np.int64)
    owner = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise RequestError(f"labels run from {labels.min()} to {labels.max()}, but {len(class_names)} names are given")
    by_domain = not rules.new_classes
    order = np.lexsort((labels, owner) if by_domain else (labels,))  # stable: within a class, the order of the stream
    images, labels, owner = _read(datasets, order), labels[order], owner[order]
    digest = hashlib.blake2b(images.reshape(-1).data, digest_size=16)
    digest.update(labels.tobytes() + owner.tobytes())  # the same images in other experiences are a different stream
    names = tuple(f"experience {i}" for i in range(len(datasets)))
    table = ImageTable(images, labels, class_names, digest.hexdigest())
    if by_domain:
        table = replace(table, domains=owner, domain_names=names)
    experiences = []
    for i, experience in enumerate(stream):
        rows = np.flatnonzero(owner == i)
        classes = tuple(np.unique(labels[rows]).tolist())
        task = int(experience.task_label) if rules.tells_task else None
        experiences.append(Experience(i, table, rows, classes, names[i], names[i] if by_domain else None, task))
    return tuple(experiences)


def _read(datasets: Sequence[Any], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N,3,H,W) images of the data sets one after the other, in `order`."""
    items: Any = ConcatDataset(datasets)
    first = _uint8(items[int(order[0])][0])
    images = np.empty((len(order), *first.shape), dtype=np.uint8)
    for row, i in enumerate(order.tolist()):
        image = _uint8(items[i][0])
        if image.shape != first.shape:
            raise RequestError(f"images of {first.shape[1:]} and {image.shape[1:]} pixels: resize them to one size")
        images[row] = image
    return images


def _uint8(image: Any) -> NDArray[np.uint8]:
    """A PIL image, or a (1 or 3,H,W) tensor -> (3,H,W)."""
    if not isinstance(image, Tensor):
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    if image.ndim != 3 or len(image) not in (1, 3):
        raise RequestError(f"images are (1 or 3,H,W), not {tuple(image.shape)}")
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
            raise RequestError("images lie outside [0, 1]: leave normalisation out of the benchmark's transforms")
        image = (255 * image).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise RequestError(f"images are uint8 or float, not {image.dtype}")
    pixels: NDArray[np.uint8] = image.expand(3, -1, -1).numpy()
    return pixels
