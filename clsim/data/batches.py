"""Batches: rows of a table as tensors on the device, augmented or clean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim.data.ahead import Ahead, Images, sent
from clsim.data.encoded import EncodedImages
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.hardware import free_memory
from clsim.parallel import Share

KEPT = 1 / 8  # of a GPU's free memory: the most that a table may take that is kept there


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
    """Makes batches of a table's rows; it loads only what the strategy reads.

    On a GPU a small table of decoded images is kept there, and each batch sends only its rows' numbers. Images of other
    tables, and encoded images everywhere, are read while the batch before is computed. Neither changes a bit.
    """

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
        self.upcoming: NDArray[np.int64] | None = None  # stream rows of the training batch after the next one
        self._whole, self._squares = Ahead(table.whole), Ahead(table.pixels)

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
            own, upcoming = (rows, self.upcoming) if share is None else (share.of(rows), None)
            images = augmented(self._images(self._whole, own, upcoming), self.pixels, how, generator, share)
            self.upcoming = None
        return Batch(images, self._viewed(rows, generator) if self.views else self._features(rows), share=share)

    def clean(self, rows: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """Labelled batches of `size` rows, in order, not augmented."""
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        for chosen, images in zip(parts, self._evaluated(parts), strict=True):
            yield replace(self._labelled(chosen, 0), images=images, features=self._features(chosen))

    def unlabelled(self, rows: NDArray[np.int64], size: int) -> Iterator[tuple[int, Batch]]:
        """(count, batch) pairs for evaluation: only the first `count` images of a batch are counted.

        Every batch has `size` images; the last batch is filled with copies of its last image. The batch's shape decides
        which kernels run, and so it changes the last bits of a prediction.
        """
        parts = [filled_up(rows[start : start + size], size) for start in range(0, len(rows), size)]
        for start, padded, images in zip(range(0, len(rows), size), parts, self._evaluated(parts), strict=True):
            yield min(size, len(rows) - start), Batch(images, self._features(padded))

    def _evaluated(self, parts: Sequence[NDArray[np.int64]]) -> Iterator[Tensor | None]:
        """The images of each batch of rows as evaluation sees them; None where the strategy reads none."""
        for rows, following in zip(parts, [*parts[1:], None], strict=True):
            if "images" not in self.reads:
                yield None
                continue
            images = self._images(self._squares, rows, following)
            assert isinstance(images, Tensor), "the squares in the centre have one size"
            yield evaluation(images, self.pixels)

    def _images(
        self, ahead: Ahead, rows: NDArray[np.int64], following: NDArray[np.int64] | None
    ) -> Tensor | list[Tensor]:
        """The images of these rows on the device; those of the `following` ones begin to be read."""
        if self._kept is not None:
            return self._kept.index_select(0, sent(torch.from_numpy(rows), self.device))
        found = ahead.take(rows)
        if following is not None and (self.device.type == "cuda" or isinstance(self.table.images, EncodedImages)):
            ahead.start(following)
        return as_tensors(found, self.device)

    @cached_property
    def _kept(self) -> Tensor | None:
        """(N,3,H,W) the table on the GPU, if it is small."""
        images = self.table.images
        if self.device.type != "cuda" or not isinstance(images, np.ndarray):
            return None
        if images.nbytes > KEPT * free_memory(self.device):
            return None
        return torch.from_numpy(np.array(images)).to(self.device)  # a copy: torch warns of a mapped file's pages

    def _features(self, rows: NDArray[np.int64]) -> Tensor | None:
        if "features" not in self.reads:
            return None
        if self.bank is None:
            raise RuntimeError("the strategy reads features, but there is no feature bank")
        return sent(self.bank.rows(rows), self.device)

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
        return sent(found, self.device)

    def _labelled(self, rows: NDArray[np.int64], replayed: int) -> Batch:
        table = self.table
        domains = None if table.domains is None else sent(torch.from_numpy(table.domains[rows]), self.device)
        labels = sent(torch.from_numpy(table.labels[rows]), self.device)
        return Batch(None, None, labels, rows, domains, replayed=replayed)


def as_tensors(images: Images, device: torch.device) -> Tensor | list[Tensor]:
    """(n,3,H,W), or n images (3,h,w), on the device; images of several sizes are sent there together."""
    if isinstance(images, np.ndarray):
        return sent(torch.from_numpy(images), device)
    together = sent(torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])), device)
    parts = together.split([image.size for image in images])
    return [part.view(image.shape) for part, image in zip(parts, images, strict=True)]


def filled_up(items: NDArray[Any], size: int) -> NDArray[Any]:
    """(n, ...) items -> (size, ...), with the last one repeated: in evaluation all batches have the same size."""
    return np.take(items, np.arange(size).clip(max=len(items) - 1), axis=0)
