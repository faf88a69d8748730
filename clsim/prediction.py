"""The final learner of a finished run, for new images."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clsim import checkpoint, config
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch, filled_up
from clsim.data.streams import Info
from clsim.data.transforms import evaluation
from clsim.learner import build_learner, load_learner
from clsim.loop import EVAL_BATCH


class Predictor:
    """Classifies images as the run's evaluation did."""

    def __init__(self, directory: Path) -> None:
        """Raises RequestError if the backbone's weights are no longer to be had, or the run's fit no longer."""
        asked = config.RunConfig.from_toml((directory / "config.toml").read_text())
        strategy = asked.make_strategy()
        backbone = load_backbone(asked.backbone, asked.weights)
        saved = checkpoint.load(directory / "checkpoint")
        info = Info(**saved["info"])
        self.bf16 = asked.precision == "bf16"
        self.learner, self.tower = build_learner(strategy, backbone, info, asked.seed, torch.device("cpu"), self.bf16)
        load_learner(self.learner, saved["learner"])
        self.learner.eval()
        self.pixels = backbone.image.pixels
        self.classes = torch.tensor(range(info.num_classes) if strategy.scores_unseen else saved["seen"])

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(N,3,H,W) uint8 -> (N,) class ids."""
        predicted: NDArray[np.int64] = self.classes[self.logits(images)[:, self.classes].argmax(dim=1)].numpy()
        return predicted

    @torch.no_grad()
    def logits(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """(N,3,H,W) uint8 -> (N, num_classes), of every class whether it was learned or not."""
        found = []
        for start in range(0, len(images), EVAL_BATCH):
            chosen = images[start : start + EVAL_BATCH]
            pixels = evaluation(torch.from_numpy(filled_up(chosen, EVAL_BATCH)), self.pixels)
            features = None if self.tower is None else self.tower(pixels).float()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                found.append(self.learner(Batch(pixels, features)).float()[: len(chosen)])
        return torch.cat(found)
