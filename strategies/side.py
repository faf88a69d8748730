"""Side-tuning (Zhang et al. 2019, arXiv:1912.13503)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import State, Strategy
from clsim.parts.heads import LinearHead
from clsim.parts.side import SideTuned
from clsim.parts.tuned import Headed


@dataclass(kw_only=True)
class Side(Strategy):
    """Side-tuning: a small network beside the frozen tower, their features mixed. Zhang et al. 2019, arXiv:1912.13503.

    One network for the whole stream; one of each experience's own in the task protocol, where it is told at test.
    """

    lr: float = 1e-3  # learning rate
    channels: int = 32  # of the side network's first convolution

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "channels")

    def build(self, backbone: Any, info: Any) -> nn.Module:
        networks = info.num_experiences if info.protocol == "task" else 1
        side = SideTuned(backbone.image, self.channels, networks)
        return Headed(side, LinearHead(backbone.image.out_dim, info.num_classes))

    def before_training_exp(self, s: State) -> None:
        s.learner.images.turn_to(s.experience.task_label or 0)
