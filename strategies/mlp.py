"""A deeper head on the frozen tower."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, Strategy, StreamInfo
from clsim.parts.heads import LinearHead
from clsim.parts.learners import BankFeatures, Headed


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that treats a batch of one image as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class MlpHead(nn.Module):
    """(B,D) features -> (B,K) logits through layers with ReLU and batch normalisation between them, in float32."""

    def __init__(self, width: int, hidden: int, layers: int, num_classes: int) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1)]
        body: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            body += [nn.Linear(before, after), nn.ReLU(), BatchNorm(after)]
        self.body = nn.Sequential(*body)
        self.last = LinearHead(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.last(self.body(features.float()))  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Mlp(Strategy):
    """MLP-k: a head of k layers on the features of the frozen tower. Jia et al. 2022, arXiv:2203.12119, section 4.1."""

    layers: int = 3  # k; ReLU and batch normalisation between layers
    hidden: int = 256  # features of the hidden layers

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "layers")
        self.at_least(1, "hidden")

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Headed(BankFeatures(), MlpHead(backbone.image.out_dim, self.hidden, self.layers, info.num_classes))
