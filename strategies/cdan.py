"""CDAN: conditional adversarial adaptation (Long et al. 2018, arXiv:1705.10667)."""

from dataclasses import dataclass

from torch import Tensor, nn

from clsim import Backbone, Step, StreamInfo
from clsim.parts.adaptation import Adapting, AdaptingOutputs, adversarial_loss, ramp
from clsim.strategies.dann import Dann, discriminator


def multilinear(features: Tensor, logits: Tensor) -> Tensor:
    """(B,D) features times (B,K) class probabilities -> (B, K*D): Long et al. 2018, arXiv:1705.10667, eq. 3.

    As in the authors' code, no gradient flows through the probabilities.
    """
    return (logits.softmax(dim=1).detach()[:, :, None] * features[:, None, :]).flatten(1)


@dataclass(kw_only=True)
class Cdan(Dann):
    """CDAN: a domain classifier whose input is features times class probabilities. Long et al. 2018, arXiv:1705.10667.

    It learns on features from the bank, through a trained bottleneck. The usual code fine-tunes the backbone;
    `tune=all` does this, too. On a stream without a target it learns from the labelled images only.
    """

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck, self.bottleneck * info.num_classes, self.hidden)

    def adapt(self, s: Step, outputs: AdaptingOutputs, target: Tensor, on_target: Tensor) -> Tensor:
        strength = self.trade_off * ramp(s.progress)
        pairs = multilinear(outputs.source, outputs.logits), multilinear(target, on_target)
        return adversarial_loss(discriminator(s), *pairs, strength)
