"""GDumb (Prabhu et al. 2020, ECCV)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import Backbone, ExperienceInfo, State, Step, StreamInfo, rng
from clsim.backbones.towers import PLAIN, Tower
from clsim.errors import RequestError
from clsim.parts.exemplars import balanced
from clsim.parts.heads import LinearHead
from clsim.parts.learners import Headed, TunedImage
from clsim.strategies.finetune import Finetune
from clsim.strategy import allowed_classes


class Restarting(Headed):
    """A tower with a linear head, which can go back to its pretrained weights and a new head."""

    def __init__(self, tower: Tower, num_classes: int) -> None:
        super().__init__(TunedImage(tower, PLAIN), LinearHead(tower.out_dim, num_classes))
        # no buffers: the pretrained weights are not saved with the learner
        self.start = {name: tensor.detach().cpu().clone() for name, tensor in tower.state_dict().items()}

    def restart(self) -> None:
        """Forget everything."""
        images, head = self.images, self.head
        assert isinstance(images, TunedImage) and isinstance(head, LinearHead)
        images.tower.load_state_dict(self.start)
        head.reset_parameters()


@dataclass(kw_only=True)
class GDumb(Finetune):
    """GDumb: a class-balanced memory, and training from the start on it alone. Prabhu et al. 2020, ECCV.

    After each experience's images have passed the memory, the pretrained tower is fine-tuned again, with a new head, on
    the images in memory. Preset `official` has the optimizer, schedule and CutMix of the authors' code.
    """

    memory: int = 500  # images kept
    epochs: int = 32  # passes over the memory
    restarts: bool = False  # after an epoch at lr / 10, cosines of 1, 2, 4, ... epochs from lr to lr / 100
    cutmix: float = 0.0  # share of the batches whose images get a rectangle of another image (Yun et al. 2019)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {
            "epochs": 256,
            "batch_size": 16,
            "optimizer": "sgd",
            "lr": 0.05,
            "weight_decay": 1e-6,
            "clip_grad": 10.0,
            "restarts": True,
            "cutmix": 0.5,
        }
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "memory")
        self.at_least(0, "cutmix")
        self.at_most(1, "cutmix")
        if self.mask == "current":
            raise ValueError("mask=current would leave out the classes of earlier images in memory")
        self.rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # in memory
        self.stored = 0

    @property
    def stored_bytes(self) -> int:
        """Uncompressed bytes of the images in memory."""
        return self.stored

    def unused(self, info: StreamInfo) -> dict[str, str]:
        why = "restarts=true sets the rate"
        return super().unused(info) | (
            dict.fromkeys(("schedule", "warmup_epochs", "warmup_lr"), why) if self.restarts else {}
        )

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Restarting(backbone.image.requires_grad_(), info.num_classes)

    def rows_for(self, s: State) -> NDArray[np.int64]:
        draw = np.random.default_rng(rng.derive(s.seed, "balanced memory", s.experience.index))
        arriving = draw.permutation(s.experience.rows)
        return balanced(self.rows, arriving, s.experience.table.labels, self.memory, draw)

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        assert isinstance(learner, Restarting)
        learner.restart()

    def after_training_exp(self, s: State) -> None:
        self.rows, self.stored = s.experience.rows, s.experience.table.bytes_of(s.experience.rows)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows.tolist(), "stored": self.stored}

    def load(self, state: dict[str, Any]) -> None:
        self.rows, self.stored = np.array(state["rows"], dtype=np.int64), state["stored"]

    def learning_rate_at(self, epoch: int, step: int, per_epoch: int) -> float:
        if not self.restarts:
            return super().learning_rate_at(epoch, step, per_epoch)
        if epoch == 0:
            return 0.1 * self.lr
        length = 2 ** int(math.log2(epoch))
        lowest = self.lr / 100
        return lowest + (self.lr - lowest) / 2 * (1 + math.cos(math.pi * (epoch - length) / length))

    # CutMix

    def before_forward(self, s: Step) -> None:
        if (box := self._box(s)) is not None:
            if s.batch.share is not None:
                raise RequestError("cutmix mixes the images of a batch, of which several processes have a share each")
            images, (top, bottom, left, right) = s.batch.known_images.clone(), box
            images[:, :, top:bottom, left:right] = s.batch.known_images.roll(1, 0)[:, :, top:bottom, left:right]
            s.batch = replace(s.batch, images=images)

    def loss(self, s: Step) -> Tensor:
        loss = super().loss(s)
        if (box := self._box(s)) is None:
            return loss
        top, bottom, left, right = box
        share = (bottom - top) * (right - left) / s.batch.known_images[0, 0].numel()
        logits = s.logits.masked_fill(~allowed_classes(s, self.mask), -math.inf)
        return (1 - share) * loss + share * nn.functional.cross_entropy(logits, s.batch.known_labels.roll(1, 0))

    def _box(self, s: Step) -> tuple[int, int, int, int] | None:
        """A batch's rectangle: top, bottom, left and right. Before it is cut at the borders its share is uniform."""
        draw = np.random.default_rng(rng.derive(s.seed, "cutmix", s.step))
        if draw.random() >= self.cutmix:
            return None
        height, width = s.batch.known_images.shape[2:]
        side = math.sqrt(1 - draw.random())
        tall, wide, row, column = int(height * side), int(width * side), draw.integers(height), draw.integers(width)
        top, left = int(row) - tall // 2, int(column) - wide // 2
        bottom, right = min(int(row) + tall // 2, height), min(int(column) + wide // 2, width)
        return max(top, 0), bottom, max(left, 0), right
