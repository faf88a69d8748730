"""MCC: minimum class confusion (Jin et al. 2020, arXiv:1912.03699)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from clsim import State, Strategy
from clsim.parts.adaptation import Adapting, class_confusion, reads


@dataclass(kw_only=True)
class Mcc(Strategy):
    """MCC: predictions on the target that confuse no two classes. Jin et al. 2020, arXiv:1912.03699.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    epochs: int = 20  # passes over the source
    bottleneck: int = 64  # features between tower and head
    trade_off: float = 1.0  # weight of the confusion loss
    temperature: float = 2.5  # of the predictions
    tune: Literal["head", "all"] = "head"  # what learns: what stands on the frozen tower, or the tower as well

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, not {self.bottleneck}")

    def reads(self) -> set[str]:
        return reads(self.tune)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck)

    def loss(self, s: State) -> Tensor:
        loss, learner = super().loss(s), s.learner
        if learner.on_target is None:
            return loss
        return loss + self.trade_off * class_confusion(learner.on_target, self.temperature)
