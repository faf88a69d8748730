"""MCC: minimum class confusion (Jin et al. 2020, arXiv:1912.03699)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import State
from clsim.families import Adaptation
from clsim.parts.adaptation import Adapting, class_confusion


@dataclass(kw_only=True)
class Mcc(Adaptation):
    """MCC: predictions on the target that confuse no two classes. Jin et al. 2020, arXiv:1912.03699.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    temperature: float = 2.5  # of the predictions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Adapting(backbone, info, self.tune, self.bottleneck)

    def adapt(self, s: State) -> Tensor:
        return self.trade_off * class_confusion(s.learner.on_target, self.temperature)
