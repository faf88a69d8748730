"""MCC: minimum class confusion (Jin et al. 2020, arXiv:1912.03699)."""

from dataclasses import dataclass

from torch import Tensor, nn

from clsim import Backbone, Step, StreamInfo
from clsim.bases import Adaptation
from clsim.parts.adaptation import Adapting, AdaptingOutputs


def class_confusion(logits: Tensor, temperature: float) -> Tensor:
    """The confusion between classes in (B,K) predictions: Jin et al. 2020, arXiv:1912.03699, eq. 2 to 6.

    Images with a more certain prediction have a larger weight. The confusion matrix is normalised by row; the loss is
    the sum of its off-diagonal entries, divided by the number of classes.
    """
    predicted = (logits / temperature).softmax(dim=1)
    entropy = -(predicted * predicted.clamp(min=1e-5).log()).sum(dim=1)
    weights = 1 + (-entropy).exp()
    weights = (weights / weights.mean()).detach()
    confusion = (predicted * weights[:, None]).T @ predicted
    confusion = confusion / confusion.sum(dim=1, keepdim=True)
    return (confusion.sum() - confusion.trace()) / len(confusion)


@dataclass(kw_only=True)
class Mcc(Adaptation):
    """MCC: minimises confusion between classes in the target predictions. Jin et al. 2020, arXiv:1912.03699.

    It learns on features from the bank, through a trained bottleneck. The usual code fine-tunes the backbone;
    `tune=all` does this, too. On a stream without a target it learns from the labelled images only.
    """

    temperature: float = 2.5  # of the predictions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck)

    def adapt(self, s: Step, outputs: AdaptingOutputs, target: Tensor, on_target: Tensor) -> Tensor:
        return self.trade_off * class_confusion(on_target, self.temperature)
