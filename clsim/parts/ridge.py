"""Ridge regression on a random projection of features: the classifier of RanPAC, arXiv:2307.02251."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from clsim.parts.heads import NO_IMAGES

PENALTIES = [10.0**power for power in range(-8, 9)]  # the lambdas that are tried
ROWS = 512  # images whose projected features are in memory together


class RidgeHead(nn.Module):
    """Ridge regression from random features h = relu(f W) to one-hot labels: B = (G + lambda I)^-1 Q.

    G is the sum of h h^T, Q of h y^T. Both and the solution are in float64: G is badly conditioned.
    """

    projection: Tensor | None
    second: Tensor
    cross: Tensor
    weight: Tensor
    counts: Tensor

    def __init__(self, width: int, num_classes: int, size: int) -> None:
        """`size`: the number M of random features; 0: h = f."""
        super().__init__()
        self.register_buffer("projection", torch.randn(width, size) if size else None)  # W, drawn once and for all
        self.size = size or width
        self.register_buffer("second", torch.zeros(self.size, self.size, dtype=torch.float64))  # G
        self.register_buffer("cross", torch.zeros(self.size, num_classes, dtype=torch.float64))  # Q
        self.register_buffer("weight", torch.zeros(self.size, num_classes, dtype=torch.float64))  # B
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def expand(self, features: Tensor) -> Tensor:
        """(B,D) features -> (B,M) h in float64."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return (features if self.projection is None else (features @ self.projection).relu()).double()

    def moments(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(M,M) G and (M,K) Q of (N,D) features and (N,) labels."""
        second, cross = torch.zeros_like(self.second), torch.zeros_like(self.cross)
        for part, own in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            h = self.expand(part)
            second += h.T @ h
            cross.index_add_(1, own, h.T)
        return second, cross

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add (N,D) features and (N,) labels to the sums. Call `solve` before the next prediction."""
        second, cross = self.moments(features, labels)
        self.second += second
        self.cross += cross
        self.counts += labels.bincount(minlength=len(self.counts))

    def solve(self, penalty: float) -> None:
        """Compute B from the sums."""
        regular = self.second.clone()
        regular.diagonal().add_(penalty)
        self.weight.copy_(torch.linalg.solve(regular, self.cross))

    def choose(self, features: Tensor, labels: Tensor, order: Tensor) -> float:
        """The penalty with the smallest squared error on the last fifth of these images, fitted to the others.

        The (N,D) features are taken in this `order`. The error is over the columns of all classes.
        """
        fitted, held_out = order.tensor_split([int(0.8 * len(order))])
        errors = torch.zeros(len(PENALTIES), dtype=torch.float64, device=features.device)
        for i, weight in enumerate(self._solutions(features[fitted], labels[fitted])):
            for part, own in zip(features[held_out].split(ROWS), labels[held_out].split(ROWS), strict=True):
                errors[i] += (self.expand(part) @ weight - self._one_hot(own)).square().sum()
        return PENALTIES[int(errors.argmin())]

    def _solutions(self, features: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """(M,K) solutions, one for each of PENALTIES, from an eigendecomposition of G or of the smaller h h^T."""
        if len(features) < self.size:
            h = self.expand(features)
            values, vectors = torch.linalg.eigh(h @ h.T)
            left, right = h.T @ vectors, vectors.T @ self._one_hot(labels)
        else:
            second, cross = self.moments(features, labels)
            values, left = torch.linalg.eigh(second)
            right = left.T @ cross
        for penalty in PENALTIES:
            yield left @ (right / (values.clamp(min=0) + penalty)[:, None])

    def _one_hot(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, len(self.counts)).double()

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) features -> (B,K) logits h B."""
        return (self.expand(features) @ self.weight).float().masked_fill(self.counts == 0, NO_IMAGES)
