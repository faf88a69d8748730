"""Heads: from features to logits."""

import itertools

import torch
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """(B,D) features -> (B,K) logits, in float32 whatever the tower computes in."""

    def forward(self, features: Tensor) -> Tensor:
        # bfloat16 has eight bits of mantissa: close logits would tie
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one image as it takes one in evaluation."""

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


class PrototypeHead(nn.Module):
    """Cosine to the mean feature of each class; a class without images scores below all others."""

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count (B,D) features with their (B,) labels into the means."""
        # float64 sums: the mean must not depend on how the images were batched
        self.sums.index_add_(0, labels, features.double())
        self.counts += labels.bincount(minlength=len(self.counts))

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) -> (B,K) cosines."""
        means = nn.functional.normalize((self.sums / self.counts.clamp(min=1)[:, None]).float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            cosine = nn.functional.normalize(features.float(), dim=1) @ means.T
        return cosine.masked_fill(self.counts == 0, -2.0)
