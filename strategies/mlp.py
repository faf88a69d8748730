"""A deeper head on the frozen tower."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, Strategy, StreamInfo
from clsim.parts.heads import MlpHead
from clsim.parts.tuned import BankFeatures, Headed


@dataclass(kw_only=True)
class Mlp(Strategy):
    """MLP-k: a head of k layers on the features of the frozen tower. Jia et al. 2022, arXiv:2203.12119, section 4.1."""

    layers: int = 3  # k; between two layers stand ReLU and batch normalisation
    hidden: int = 256  # features of the hidden layers

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "layers")
        self.at_least(1, "hidden")

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Headed(BankFeatures(), MlpHead(backbone.image.out_dim, self.hidden, self.layers, info.num_classes))
