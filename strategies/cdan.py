"""CDAN: conditional adversarial adaptation (Long et al. 2018, arXiv:1705.10667)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from clsim import State, Strategy
from clsim.parts.adaptation import Adapting, adversarial_loss, multilinear, ramp, reads


@dataclass(kw_only=True)
class Cdan(Strategy):
    """CDAN: a domain classifier that sees features times class probabilities. Long et al. 2018, arXiv:1705.10667.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    epochs: int = 20  # passes over the source
    bottleneck: int = 64  # features between tower and head
    trade_off: float = 1.0  # weight of the domain loss
    hidden: int = 64  # features of the domain classifier's hidden layer
    tune: Literal["head", "all"] = "head"  # what learns: what stands on the frozen tower, or the tower as well

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, not {self.bottleneck}")

    def reads(self) -> set[str]:
        return reads(self.tune)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck * info.num_classes, self.hidden)

    def loss(self, s: State) -> Tensor:
        loss, learner = super().loss(s), s.learner
        if learner.on_target is None:
            return loss
        strength = self.trade_off * ramp(s.progress)
        source, target = multilinear(learner.source, s.logits), multilinear(learner.target, learner.on_target)
        return loss + adversarial_loss(learner.discriminator, source, target, strength)
