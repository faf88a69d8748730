"""Unsupervised domain adaptation: building blocks to align a labelled source and an unlabelled target."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from clsim.backbones.load import Backbone
from clsim.backbones.towers import PLAIN
from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.outputs import Outputs
from clsim.parts.heads import LinearHead
from clsim.parts.learners import BankFeatures, TunedImage


def inputs_for(tune: str) -> set[str]:
    """The image features of a learner: from the bank if it tunes "head", from a trained tower if it tunes "all"."""
    return {"images"} if tune == "all" else {"features"}


def features_of(backbone: Backbone, tune: str) -> nn.Module:
    """Batch -> (B,D) features: from the bank, or from a tower that learns."""
    return TunedImage(backbone.image.requires_grad_(), PLAIN) if tune == "all" else BankFeatures()


@dataclass(frozen=True, kw_only=True)
class AdaptingOutputs(Outputs):
    """Outputs for a batch of the source and, in training, of a target."""

    source: Tensor  # (B,width) features, the same as `features`
    target: Tensor | None = None  # (B',width) features of the batch's target images; None if it has none
    on_target: Tensor | None = None  # (B',K) logits of the target images


class Adapting(nn.Module):
    """Features through a bottleneck and a linear head, of the source and, in training, of the target."""

    def __init__(
        self, backbone: Backbone, info: StreamInfo, tune: str, width: int, seen_by_domain: int = 0, hidden: int = 0
    ) -> None:
        """`seen_by_domain`: input width of the domain classifier; it is built if this is not 0 and a target exists."""
        super().__init__()
        self.images = features_of(backbone, tune)
        self.bottleneck = nn.Sequential(nn.Linear(backbone.image.out_dim, width), nn.ReLU())
        self.head = LinearHead(width, info.num_classes)
        adversarial = seen_by_domain and info.has_target
        self.discriminator = DomainClassifier(seen_by_domain, hidden) if adversarial else None

    def forward(self, batch: Batch) -> AdaptingOutputs:
        """A batch, with or without a target."""
        source = self._narrow(batch)
        if batch.target is None:
            return AdaptingOutputs(self.head(source), source, source=source)
        target = self._narrow(batch.target)
        on_target = self.head(target)
        return AdaptingOutputs(self.head(source), source, source=source, target=target, on_target=on_target)

    def _narrow(self, batch: Batch) -> Tensor:
        features = self.images(batch).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.bottleneck(features)  # type: ignore[no-any-return]


class DomainClassifier(nn.Module):
    """(B,D) features -> (B,) logits; positive means source."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """The logits."""
        return self.layers(features)[:, 0]  # type: ignore[no-any-return]


class Reversed(torch.autograd.Function):
    """Gradient reversal: identity with a negated, scaled gradient (Ganin et al. 2016, arXiv:1505.07818, eq. 16-17)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """x, unchanged."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The gradient times `-strength`."""
        return -ctx.strength * gradient, None


def ramp(progress: float) -> float:
    """From 0 at progress 0 to nearly 1 at 1: Ganin et al. 2016, section 5.2.2."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def adversarial_loss(discriminator: nn.Module, source: Tensor, target: Tensor, strength: float) -> Tensor:
    """Cross-entropy of classifying (B,D) source and (B',D) target features by domain: half the sum of both means.

    So both domains weigh the same where one has fewer images, as in Ganin et al. 2016, eq. 9. The reversed gradient,
    scaled by `strength`, aligns the two.
    """
    logits = discriminator(Reversed.apply(torch.cat([source, target]).float(), strength))
    domain = torch.cat([logits.new_ones(len(source)), logits.new_zeros(len(target))])
    shares = [logits.new_full((len(each),), len(logits) / (2 * len(each))) for each in (source, target)]
    return binary_cross_entropy_with_logits(logits, domain, torch.cat(shares))
