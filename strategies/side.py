"""Side-tuning (Zhang et al. 2019, arXiv:1912.13503)."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, ExperienceInfo, Strategy, StreamInfo
from clsim.parts.heads import LinearHead
from clsim.parts.side import SideTuned
from clsim.parts.tuned import Headed


@dataclass(kw_only=True)
class Side(Strategy):
    """Side-tuning: a small network beside the frozen tower, their features mixed. Zhang et al. 2019, arXiv:1912.13503.

    One network for the whole stream; one of each experience's own in the task protocol, where it is told at test.
    """

    channels: int = 32  # of the side network's first convolution

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "channels")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        networks = info.num_experiences if info.tells_task else 1
        side = SideTuned(backbone.image, self.channels, networks)
        return Headed(side, LinearHead(backbone.image.out_dim, info.num_classes))

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        assert isinstance(learner, Headed) and isinstance(learner.images, SideTuned)
        learner.images.turn_to(experience.task_label or 0)
