"""A linear head on the frozen tower."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, Strategy, StreamInfo
from clsim.parts.heads import LinearHead
from clsim.parts.learners import BankFeatures, Headed


@dataclass(kw_only=True)
class Linear(Strategy):
    """Linear probing: a linear head on the frozen tower's features, trained on one experience after another."""

    lr: float = 3e-3

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Headed(BankFeatures(), LinearHead(backbone.image.out_dim, info.num_classes))
