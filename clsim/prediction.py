"""Predictions for new images by the final learner of a finished run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clsim import checkpoint, config
from clsim.backbones.features import BLOCK
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch, filled_up
from clsim.data.transforms import evaluation
from clsim.errors import RequestError
from clsim.evaluation import predict
from clsim.learner import build_learner, load_learner, replay
from clsim.outputs import as_outputs
from clsim.snapshot import experiences, stream_info
from clsim.tools import EVAL_BATCH


class Predictor:
    """Classifies images exactly as the run's last evaluation: same batches, same precision, same classes."""

    def __init__(self, directory: Path) -> None:
        """Raises RequestError if the backbone's weights are unavailable, or the saved weights do not fit."""
        asked = config.RunConfig.from_toml((directory / "config.toml").read_text())
        strategy = asked.make_strategy()
        backbone = load_backbone(asked.backbone, asked.weights, asked.image_size)
        saved = checkpoint.load(directory / "checkpoint")
        info = stream_info(saved["info"])
        self.bf16 = asked.precision == "bf16"
        self.learner, self.tower = build_learner(strategy, backbone, info, asked.seed, torch.device("cpu"), self.bf16)
        replay(strategy, self.learner, experiences(saved["begun"]), asked.seed, torch.device("cpu"))
        load_learner(self.learner, saved["learner"])
        self.learner.eval()
        self.reads = strategy.reads()
        self.pixels = backbone.image.pixels
        self.info = info
        self.tests = experiences(saved["tests"])
        self.others = tuple(range(info.num_classes)) if strategy.scores_unseen else tuple(saved["seen"])

    def predict(self, images: ArrayLike, task: int | NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """(N,3,H,W) uint8 -> (N,) class ids; `task` as in `scores`.

        Images are classified among all learned classes; with `task`, among the classes of that experience.
        """
        given = _checked(images)
        predicted = np.empty(len(given), dtype=np.int64)
        for places, number in self._tasks(len(given), task):
            own = self.others if number is None else self.tests[number].classes
            label = None if number is None else self.tests[number].task_label
            batches = self._batches(given[places])
            predicted[places] = predict(self.learner, batches, own, self._autocast, torch.device("cpu"), label).classes
        return predicted

    @torch.no_grad()
    def scores(self, images: ArrayLike, task: int | NDArray[np.int64] | None = None) -> Tensor:
        """(N,3,H,W) uint8 -> (N, num_classes) logits for all classes, learned or not.

        `task`: index (from 0) of the test experience; one number for all images, or (N,) numbers. Raises RequestError
        if the protocol does not reveal the task.
        """
        given = _checked(images)
        found: list[tuple[NDArray[np.int64], Tensor]] = []
        for places, number in self._tasks(len(given), task):
            label = None if number is None else self.tests[number].task_label
            rows = []
            for count, batch in self._batches(given[places]):
                with self._autocast():
                    outputs = as_outputs(self.learner(batch.with_task(label)))
                rows.append(outputs.logits.float()[:count])
            found.append((places, torch.cat(rows)))
        scores = torch.empty(len(given), found[0][1].shape[1])
        for places, own in found:
            scores[torch.from_numpy(places)] = own
        return scores

    def _tasks(self, count: int, task: int | NDArray[np.int64] | None) -> list[tuple[NDArray[np.int64], int | None]]:
        """The positions of the images of each task."""
        if task is None:
            return [(np.arange(count), None)]
        if not self.info.tells_task:
            name = self.info.protocol
            raise RequestError(f"the protocol {name!r} does not reveal the task of an image: leave task out")
        given = np.broadcast_to(np.asarray(task, dtype=np.int64), (count,))
        for number in np.unique(given).tolist():
            if not 0 <= number < len(self.tests):
                raise RequestError(f"task is 0 to {len(self.tests) - 1}, not {number}")
        return [(np.flatnonzero(given == number), number) for number in np.unique(given).tolist()]

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[tuple[int, Batch]]:
        """(count, batch) pairs: the inputs that the strategy reads, in full batches."""
        for start in range(0, len(images), EVAL_BATCH):
            chosen = images[start : start + EVAL_BATCH]
            full = filled_up(chosen, EVAL_BATCH)
            pixels = evaluation(torch.from_numpy(full), self.pixels) if "images" in self.reads else None
            yield len(chosen), Batch(pixels, None if self.tower is None else self._features(full))

    @torch.no_grad()
    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        """(B,3,H,W) -> (B,D), computed in the bank's block size: the last bits depend on the batch's shape."""
        assert self.tower is not None
        blocks = []
        for start in range(0, len(images), BLOCK):
            pixels = evaluation(torch.from_numpy(images[start : start + BLOCK]), self.tower.pixels)
            blocks.append(self.tower(pixels).to(self.tower.dtype).float())
        return torch.cat(blocks)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def _checked(images: ArrayLike) -> NDArray[np.uint8]:
    """(N,3,H,W) uint8 images. Raises RequestError for anything else."""
    given = np.asarray(images)
    if given.ndim != 4 or given.shape[1] != 3 or given.dtype != np.uint8 or not len(given):
        raise RequestError(f"images are (N,3,H,W) uint8, at least one, not {given.shape} {given.dtype}")
    return given
