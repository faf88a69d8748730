"""Heads: from features to logits."""

from typing import Literal

import torch
from torch import Tensor, nn

HeadStart = Literal["uniform", "normal", "zero"]


class LinearHead(nn.Linear):
    """(B,D) features -> (B,K) logits, in float32 for every precision of the tower."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, start: HeadStart = "uniform") -> None:
        """`start`: weights and bias uniform up to 1/sqrt(D), weights N(0, 0.02^2) and bias 0, or both 0."""
        super().__init__(in_features, out_features, bias)
        if start == "normal":
            nn.init.trunc_normal_(self.weight, std=0.02)
        elif start == "zero":
            nn.init.zeros_(self.weight)
        if start != "uniform" and bias:
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        # bfloat16 has an eight-bit mantissa: close logits would become equal
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class CosineHead(nn.Module):
    """Cosine to learned class vectors, times a learned scale, in float32 for every precision of the tower."""

    def __init__(self, in_features: int, out_features: int) -> None:
        """The vectors start uniform up to 1/sqrt(D), the scale at 1."""
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) features -> (B,K) logits."""
        with torch.autocast(features.device.type, enabled=False):
            unit = nn.functional.normalize
            return self.scale * nn.functional.linear(unit(features.float(), dim=1), unit(self.weight, dim=1))


NO_IMAGES = -1e30  # logit of a class without images where logits have no bound: lower than all others, and finite


class ClassMeans(nn.Module):
    """The mean feature of each class, from features that may come in any batches and in any order."""

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add (B,D) features with (B,) labels to the means."""
        # float64 sums: the mean must not depend on how the images were batched
        self.sums.index_add_(0, labels, features.double())
        self.counts += labels.bincount(minlength=len(self.counts))

    @property
    def means(self) -> Tensor:
        """(K,D) means in float64; zero for a class without images."""
        return self.sums / self.counts.clamp(min=1)[:, None]


class PrototypeHead(ClassMeans):
    """Cosine to the mean feature of each class; a class without images gets a lower score than all others."""

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) -> (B,K) cosines."""
        means = nn.functional.normalize(self.means.float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            cosine = nn.functional.normalize(features.float(), dim=1) @ means.T
        return cosine.masked_fill(self.counts == 0, -2.0)
