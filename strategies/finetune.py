"""Sequential fine-tuning of all weights: the baseline that forgets."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, Strategy, StreamInfo
from clsim.backbones.towers import PLAIN
from clsim.parts.heads import LinearHead
from clsim.parts.learners import Headed, TunedImage


@dataclass(kw_only=True)
class Finetune(Strategy):
    """Fine-tuning: all weights learn with cross-entropy, on one experience after another."""

    lr: float = 3e-4

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        tower = backbone.image.requires_grad_()
        return Headed(TunedImage(tower, PLAIN), LinearHead(tower.out_dim, info.num_classes))
