"""Batches: rows of a table as tensors on the device, augmented or clean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.parallel import Share


class Bank(Protocol):
    """Features of a table's images; see clsim.backbones.features."""

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """(B,) rows of the table -> (B,D) float32 features, on the CPU."""


@dataclass(frozen=True)
class Batch:
    """The input of a learner. In evaluation `labels`, `rows` and `domains` are None."""

    images: Tensor | None  # (B,3,S,S) normalised, if the strategy reads images
    features: Tensor | None = None  # (B,D) float32, of the clean image, if it reads features
    labels: Tensor | None = None  # (B,)
    rows: NDArray[np.int64] | None = None  # (B,) rows of the training table
    domains: Tensor | None = None  # (B,)
    replayed: int = 0  # number of replayed images at the end of the batch
    task: int | None = None  # only if the protocol reveals it
    target: "Batch | None" = None  # in adaptation: images of the target, without labels
    share: Share | None = None  # with several processes, in training: which part of the batch `images` are

    @property
    def known_labels(self) -> Tensor:
        """(B,) labels. Raises RuntimeError in evaluation, where there are none."""
        if self.labels is None:
            raise RuntimeError("batches in evaluation carry no labels")
        return self.labels

    @property
    def known_images(self) -> Tensor:
        """(B,3,S,S) images. Raises RuntimeError if the strategy does not read them."""
        if self.images is None:
            raise RuntimeError('this batch has no images: the strategy\'s reads() must have "images"')
        return self.images

    @property
    def known_features(self) -> Tensor:
        """(B,D) features. Raises RuntimeError if the strategy does not read them."""
        if self.features is None:
            raise RuntimeError('this batch has no features: the strategy\'s reads() must have "features"')
        return self.features

    def __len__(self) -> int:
        if self.share is not None:
            return self.share.count
        given = self.images if self.images is not None else self.features
        return 0 if given is None else len(given)

    def with_task(self, task: int | None) -> "Batch":
        """The same batch with this task."""
        return replace(self, task=task)

    def own(self) -> "Batch":
        """What this process computes: its share, or all of it."""
        share = self.share
        if share is None:
            return self
        names = ("features", "labels", "rows", "domains")
        columns = {name: getattr(self, name) for name in names}
        cut = {name: None if column is None else share.of(column) for name, column in columns.items()}
        replayed = int((share.places >= share.count - self.replayed).sum())
        target = None if self.target is None else self.target.own()
        return replace(self, **cut, replayed=replayed, target=target, share=None)

    def singles(self) -> "Iterator[Batch]":
        """Batches of one image each."""
        for i in range(len(self)):
            one = slice(i, i + 1)
            names = ("images", "features", "labels", "rows", "domains")
            columns = {name: getattr(self, name) for name in names}
            cut = {name: None if column is None else column[one] for name, column in columns.items()}
            yield Batch(**cut, task=self.task, replayed=int(i >= len(self) - self.replayed))


class Loader:
    """Makes batches of a table's rows; it loads only what the strategy reads."""

    def __init__(
        self,
        table: ImageTable,
        pixels: InputSpec,
        reads: set[str],
        device: torch.device,
        bank: Bank | None = None,
        views: Sequence[Bank] = (),
    ) -> None:
        """`bank`: the table's FeatureBank, needed if `reads` has "features"; `views`: the banks of augmented images.

        With `views`, training features come from one view of each image, drawn again in each step.
        """
        self.table = table
        self.pixels = pixels
        self.reads = reads
        self.device = device
        self.bank = bank
        self.views = views

    def train(
        self,
        rows: NDArray[np.int64],
        how: Augmentation,
        generator: torch.Generator,
        replayed: int = 0,
        share: Share | None = None,
    ) -> Batch:
        """A labelled batch with augmented images; features are those of the clean images, or of views.

        With a share, only its images are decoded; all else is that of the whole batch.
        """
        target = self.target(rows, how, generator, share)
        return replace(self._labelled(rows, replayed), images=target.images, features=target.features, share=share)

    def target(
        self, rows: NDArray[np.int64], how: Augmentation, generator: torch.Generator, share: Share | None = None
    ) -> Batch:
        """A batch as from `train`, but without labels."""
        images = None
        if "images" in self.reads:
            whole = as_tensors(self.table.whole(rows if share is None else share.of(rows)), self.device)
            images = augmented(whole, self.pixels, how, generator, share)
        return Batch(images, self._viewed(rows, generator) if self.views else self._features(rows), share=share)

    def clean(self, rows: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """Labelled batches of `size` rows, in order, not augmented."""
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            images = evaluation(self._pixels(chosen), self.pixels) if "images" in self.reads else None
            yield replace(self._labelled(chosen, 0), images=images, features=self._features(chosen))

    def unlabelled(self, rows: NDArray[np.int64], size: int) -> Iterator[tuple[int, Batch]]:
        """(count, batch) pairs for evaluation: only the first `count` images of a batch are counted.

        Every batch has `size` images; the last batch is filled with copies of its last image. The batch's shape decides
        which kernels run, and so it changes the last bits of a prediction.
        """
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            padded = filled_up(chosen, size)
            images = evaluation(self._pixels(padded), self.pixels) if "images" in self.reads else None
            yield len(chosen), Batch(images, self._features(padded))

    def _pixels(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.table.pixels(rows)).to(self.device)

    def _features(self, rows: NDArray[np.int64]) -> Tensor | None:
        if "features" not in self.reads:
            return None
        if self.bank is None:
            raise RuntimeError("the strategy reads features, but there is no feature bank")
        return self.bank.rows(rows).to(self.device)

    def _viewed(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Features of one view of each image; only the drawn rows of each view are read."""
        chosen = torch.randint(len(self.views), (len(rows),), generator=generator).numpy()
        found: Tensor | None = None
        for view in np.unique(chosen).tolist():
            places = np.flatnonzero(chosen == view)
            own = self.views[view].rows(rows[places])
            found = own.new_empty(len(rows), own.shape[1]) if found is None else found
            found[torch.from_numpy(places)] = own
        if found is None:
            raise RuntimeError("no rows are asked for")
        return found.to(self.device)

    def _labelled(self, rows: NDArray[np.int64], replayed: int) -> Batch:
        table = self.table
        domains = None if table.domains is None else torch.from_numpy(table.domains[rows]).to(self.device)
        labels = torch.from_numpy(table.labels[rows]).to(self.device)
        return Batch(None, None, labels, rows, domains, replayed=replayed)


def as_tensors(images: NDArray[np.uint8] | list[NDArray[np.uint8]], device: torch.device) -> Tensor | list[Tensor]:
    """(n,3,H,W), or n images (3,h,w), on the device; images of several sizes are sent there together."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).to(device)
    together = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).to(device)
    parts = together.split([image.size for image in images])
    return [part.view(image.shape) for part, image in zip(parts, images, strict=True)]


def filled_up(items: NDArray[Any], size: int) -> NDArray[Any]:
    """(n, ...) items -> (size, ...), with the last one repeated: in evaluation all batches have the same size."""
    return np.take(items, np.arange(size).clip(max=len(items) - 1), axis=0)
