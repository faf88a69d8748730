"""DANN: domain-adversarial training (Ganin et al. 2016, arXiv:1505.07818)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import State
from clsim.families import Adaptation
from clsim.parts.adaptation import Adapting, adversarial_loss, ramp


@dataclass(kw_only=True)
class Dann(Adaptation):
    """DANN: features that a domain classifier cannot tell apart. Ganin et al. 2016, arXiv:1505.07818.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    hidden: int = 64  # features of the domain classifier's hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "hidden")

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck, self.hidden)

    def adapt(self, s: State) -> Tensor:
        strength = self.trade_off * ramp(s.progress)
        return adversarial_loss(s.learner.discriminator, s.learner.source, s.learner.target, strength)
