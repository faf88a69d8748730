"""Predictions for new images by the final learner of a finished run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clsim import checkpoint, checksums, config, options, rundir
from clsim.backbones.features import BLOCK
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch, filled_up
from clsim.data.transforms import evaluation
from clsim.errors import RequestError
from clsim.evaluation import predict
from clsim.given_images import GivenImages
from clsim.hardware import settled
from clsim.learner import build_learner, load_learner, replay
from clsim.outputs import as_outputs
from clsim.snapshot import experiences, stream_info
from clsim.tools import EVAL_BATCH, eval_batch


class Predictor:
    """Classifies images exactly as the run's last evaluation: same batches, same precision, same classes."""

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        """Raises RequestError if the backbone's weights are unavailable, or the saved ones are broken or do not fit."""
        checksums.require(directory, rundir.CONFIG, rundir.ENVIRONMENT, rundir.STATE)
        asked = config.RunConfig.from_toml((directory / "config.toml").read_text(encoding="utf-8"), directory)
        made = _environment(directory)
        _warn_of_other_plugins(directory, asked, made)
        self.device = torch.device(settled(options.device(device, "device"), "fp32")[0])
        strategy = asked.make_strategy()
        backbone = load_backbone(asked.backbone, asked.weights, asked.image_size)
        saved = _saved(directory)
        info = stream_info(saved["info"])
        self.bf16 = asked.precision == "bf16"
        self.learner, self.tower = build_learner(strategy, backbone, info, asked.seed, self.device, self.bf16)
        replay(strategy, self.learner, experiences(saved["begun"]), asked.seed, self.device)
        load_learner(self.learner, saved["learner"])
        self.learner.eval()
        self.reads = strategy.reads()
        self.batch = eval_batch(self.reads)
        self.pixels = backbone.image.pixels
        self.info = info
        self.tests = experiences(saved["tests"])
        everything = strategy.scores_unseen or strategy.test_classes == "all"
        self.others = tuple(range(info.num_classes)) if everything else tuple(saved["seen"])
        size = made.get("image_size")  # None: made by an earlier version
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def predict(
        self, images: Any, task: int | ArrayLike | None = None, batch_size: int = EVAL_BATCH
    ) -> NDArray[np.int64]:
        """(N,) class ids; see `Run.predict`.

        Images are classified among all learned classes; with `task`, among the classes of that experience.
        """
        given, size = GivenImages(images, self.size), self._whole_batches(batch_size)
        predicted = np.empty(len(given), dtype=np.int64)
        for places, number in self._tasks(len(given), task):
            own = self.others if number is None else self.tests[number].classes
            label = None if number is None else self.tests[number].task_label
            batches = self._batches(given.only(places), size)
            predicted[places] = predict(self.learner, batches, own, self._autocast, self.device, label).classes
        return predicted

    @torch.no_grad()
    def scores(self, images: Any, task: int | ArrayLike | None = None, batch_size: int = EVAL_BATCH) -> Tensor:
        """(N, num_classes) logits on the CPU for all classes, learned or not; see `Run.scores`.

        `task`: index (from 0) of the test experience; one number for all images, or (N,) numbers. Raises RequestError
        if the protocol does not reveal the task.
        """
        given, size = GivenImages(images, self.size), self._whole_batches(batch_size)
        found: list[tuple[NDArray[np.int64], Tensor]] = []
        for places, number in self._tasks(len(given), task):
            label = None if number is None else self.tests[number].task_label
            rows = []
            for count, batch in self._batches(given.only(places), size):
                with self._autocast():
                    outputs = as_outputs(self.learner(batch.with_task(label)))
                rows.append(outputs.logits.float()[:count].cpu())
            found.append((places, torch.cat(rows)))
        scores = torch.empty(len(given), found[0][1].shape[1])
        for places, own in found:
            scores[torch.from_numpy(places)] = own
        return scores

    def _whole_batches(self, batch_size: int) -> int:
        """Images to prepare at once: whole evaluation batches, so that `batch_size` changes no prediction."""
        asked = options.at_least(1, int)(batch_size, "batch_size")
        return -(-int(asked) // self.batch) * self.batch

    def _tasks(self, count: int, task: int | ArrayLike | None) -> list[tuple[NDArray[np.int64], int | None]]:
        """The positions of the images of each task."""
        if task is None:
            return [(np.arange(count), None)]
        if not self.info.tells_task:
            name = self.info.protocol
            raise RequestError(f"the protocol {name!r} does not reveal the task of an image: leave task out")
        given = _task_numbers(task, count)
        for number in np.unique(given).tolist():
            if not 0 <= number < len(self.tests):
                raise RequestError(f"task is 0 to {len(self.tests) - 1}, not {number}")
        return [(np.flatnonzero(given == number), number) for number in np.unique(given).tolist()]

    def _batches(self, given: GivenImages, at_once: int) -> Iterator[tuple[int, Batch]]:
        """(count, batch) pairs: the inputs that the strategy reads, in full batches; `at_once` images are prepared."""
        for start in range(0, len(given), at_once):
            prepared = given.take(start, start + at_once)
            for first in range(0, len(prepared), self.batch):
                chosen = prepared[first : first + self.batch]
                pixels = None
                if "images" in self.reads:
                    pixels = evaluation(self._on_device(filled_up(chosen, self.batch)), self.pixels)
                yield len(chosen), Batch(pixels, None if self.tower is None else self._features(chosen))

    @torch.no_grad()
    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        """(n,3,H,W) -> (batch,D), filled up; computed in the bank's block size: last bits depend on a batch's shape."""
        assert self.tower is not None
        blocks = []
        for start in range(0, len(images), BLOCK):
            block = filled_up(images[start : start + BLOCK], BLOCK)
            pixels = evaluation(self._on_device(block), self.tower.pixels)
            blocks.append(self.tower(pixels).to(self.tower.dtype).float())
        found = torch.cat(blocks)[: len(images)]
        return torch.cat([found, found[-1:].expand(self.batch - len(images), -1)])

    def _on_device(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def _task_numbers(task: int | ArrayLike, count: int) -> NDArray[np.int64]:
    """(count,) task numbers. Raises RequestError unless `task` is one whole number, or one for each image."""
    given = np.asarray(task)
    if given.dtype.kind not in "iu" or given.shape not in ((), (1,), (count,)):
        what = f"{given.dtype} of shape {given.shape}" if given.shape else repr(task)
        raise RequestError(f"task must be a whole number, or one for each of the {count} images, not {what}")
    return np.broadcast_to(given.astype(np.int64), (count,))


def _saved(directory: Path) -> dict[str, Any]:
    """The run's checkpoint. Raises RequestError."""
    try:
        found: dict[str, Any] = checkpoint.load(directory / rundir.CHECKPOINT)
    except (FileNotFoundError, RequestError) as error:
        raise RequestError(f"{error}; {rundir.WAY_OUT}") from error
    return found


def _environment(directory: Path) -> dict[str, Any]:
    """env.json, or nothing if it is missing or broken: predictions do not need it."""
    try:
        found = json.loads((directory / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _warn_of_other_plugins(directory: Path, asked: config.RunConfig, made: dict[str, Any]) -> None:
    """Warn on standard error, once for each run, if the text of a plug-in is not that which the run was made with."""
    before, now = made.get("plugins"), asked.identities()
    if not isinstance(before, dict) or directory.resolve() in _warned:
        return
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        _warned.add(directory.resolve())
        print(
            f"clsim: {', '.join(changed)} changed after {directory} was made: predictions use the present code",
            file=sys.stderr,
        )


_warned: set[Path] = set()  # directories of runs that the warning has named
