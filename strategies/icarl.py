"""iCaRL (Rebuffi et al. 2017, arXiv:1611.07725)."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import Backbone, ExperienceInfo, Outputs, State, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.data.batches import Batch
from clsim.parts.exemplars import ExemplarSets, unit_features
from clsim.parts.heads import LinearHead, PrototypeHead
from clsim.parts.lwf import distillation
from clsim.parts.regularisers import trained
from clsim.strategies.finetune import Finetune


class ExemplarMeans(nn.Module):
    """A tower with a head for training, and the means of exemplars' features, which classify."""

    def __init__(self, tower: Tower, num_classes: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = LinearHead(tower.out_dim, num_classes)
        self.means = PrototypeHead(tower.out_dim, num_classes)

    def forward(self, batch: Batch) -> Outputs:
        """A batch -> Outputs with logits of the head in training, else cosines to the means."""
        features = self.tower(batch.known_images)
        return Outputs((self.head if self.training else self.means)(features), features)


@dataclass(kw_only=True)
class ICarl(Finetune):
    """iCaRL: exemplars chosen by herding, distillation, nearest mean of exemplars. Rebuffi et al. 2017.

    arXiv:1611.07725. All weights learn from an experience's images and all exemplars, shuffled together. Targets of
    earlier classes are the outputs of the network before the experience; a class that comes again is learned from its
    labels. An image gets the class whose exemplars' mean feature is nearest, under the current network.
    """

    memory: int = 2000  # exemplars of all classes together
    per_class: int = 0  # exemplars of each class; 0: memory divided by the number of classes seen
    distil: Literal["bce", "kd"] = (
        "bce"  # the paper's sigmoid outputs with binary cross-entropy; kd: softmax, with distillation as in lwf
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "memory")
        self.at_least(0, "per_class")
        if self.mask == "current":
            raise ValueError("mask=current would leave out the classes of the exemplars")
        self.exemplars = ExemplarSets()
        self.before: dict[str, Tensor] = {}  # in training: the weights before the experience

    @property
    def stored_bytes(self) -> int:
        """Uncompressed bytes of the exemplars."""
        return self.exemplars.stored_bytes

    def unused(self, info: StreamInfo) -> dict[str, str]:
        found = {"memory": "per_class is given"} if self.per_class else {}
        over = ("mask", "label_smoothing") if self.distil == "bce" else ()
        return super().unused(info) | found | dict.fromkeys(over, "distil=bce is over all classes seen")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return ExemplarMeans(backbone.image.requires_grad_(), info.num_classes)

    def epochs_for(self, experience: ExperienceInfo) -> int:
        return self.epochs  # and `fit` after them

    def rows_for(self, s: State) -> NDArray[np.int64]:
        return np.union1d(s.experience.rows, self.exemplars.rows)

    def before_training_exp(self, s: State) -> None:
        if self.exemplars.kept:
            self.before = {name: p.detach().clone() for name, p in trained(s.learner).items()}

    def loss(self, s: Step) -> Tensor:
        old = tuple(sorted({*s.seen} - {*s.experience.classes}))
        taught = self._taught(s) if old else None
        if self.distil == "kd":
            loss = super().loss(s)
            return loss if taught is None else loss + distillation(s.logits, taught, s.class_ids(old))
        targets = torch.zeros_like(s.logits).scatter(1, s.batch.known_labels[:, None], 1.0)
        if taught is not None:
            targets = torch.where(s.class_mask(old), taught.sigmoid(), targets)
        seen = s.class_ids(s.seen)
        return nn.functional.binary_cross_entropy_with_logits(s.logits[:, seen], targets[:, seen])

    @torch.no_grad()
    def _taught(self, s: Step) -> Tensor:
        """(B,K) logits of the network before the experience."""
        self.before = {name: p.to(s.logits.device) for name, p in self.before.items()}  # a checkpoint has them on CPUs
        return s.forward(s.batch, self.before)

    def fit(self, s: State) -> None:
        self.exemplars.update(s, self.per_class or max(1, self.memory // len(s.seen)))
        self.before = {}
        means = s.learner_as(ExemplarMeans).means
        means.sums.zero_()
        means.counts.zero_()
        means.add(*unit_features(s, self.exemplars.rows))

    def state(self) -> dict[str, Any]:
        return {"exemplars": self.exemplars.state(), "before": dict(self.before)}

    def load(self, state: dict[str, Any]) -> None:
        self.exemplars.load(state["exemplars"])
        self.before = dict(state["before"])
