"""DANN: domain-adversarial training (Ganin et al. 2016, arXiv:1505.07818)."""

from dataclasses import dataclass

from torch import Tensor, nn

from clsim import Backbone, Step, StreamInfo
from clsim.bases import Adaptation
from clsim.parts.adaptation import Adapting, AdaptingOutputs, adversarial_loss, ramp


@dataclass(kw_only=True)
class Dann(Adaptation):
    """DANN: features from which the domain cannot be predicted. Ganin et al. 2016, arXiv:1505.07818.

    It learns on features from the bank, through a trained bottleneck. The usual code fine-tunes the backbone;
    `tune=all` does this, too. On a stream without a target it learns from the labelled images only.
    """

    hidden: int = 64  # features of the domain classifier's hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "hidden")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck, self.hidden)

    def adapt(self, s: Step, outputs: AdaptingOutputs, target: Tensor, on_target: Tensor) -> Tensor:
        return adversarial_loss(discriminator(s), outputs.source, target, self.trade_off * ramp(s.progress))


def discriminator(s: Step) -> nn.Module:
    """The learner's domain classifier; it exists if there is a target."""
    found = s.learner_as(Adapting).discriminator
    assert found is not None
    return found
