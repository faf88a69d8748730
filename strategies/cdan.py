"""CDAN: conditional adversarial adaptation (Long et al. 2018, arXiv:1705.10667)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import State
from clsim.parts.adaptation import Adapting, adversarial_loss, multilinear, ramp
from clsim.strategies.dann import Dann


@dataclass(kw_only=True)
class Cdan(Dann):
    """CDAN: a domain classifier that sees features times class probabilities. Long et al. 2018, arXiv:1705.10667.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck * info.num_classes, self.hidden)

    def adapt(self, s: State) -> Tensor:
        learner, strength = s.learner, self.trade_off * ramp(s.progress)
        source, target = multilinear(learner.source, s.logits), multilinear(learner.target, learner.on_target)
        return adversarial_loss(learner.discriminator, source, target, strength)
