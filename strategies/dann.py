"""DANN: domain-adversarial training (Ganin et al. 2016, arXiv:1505.07818)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from clsim import State, Strategy
from clsim.parts.adaptation import Adapting, adversarial_loss, ramp, reads


@dataclass(kw_only=True)
class Dann(Strategy):
    """DANN: features that a domain classifier cannot tell apart. Ganin et al. 2016, arXiv:1505.07818.

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
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck, self.hidden)

    def loss(self, s: State) -> Tensor:
        loss, learner = super().loss(s), s.learner
        if learner.on_target is None:
            return loss
        strength = self.trade_off * ramp(s.progress)
        return loss + adversarial_loss(learner.discriminator, learner.source, learner.target, strength)
