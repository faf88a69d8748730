"""Deep SLDA (Hayes and Kanan 2020, arXiv:1909.01520)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, State, Strategy, StreamInfo
from clsim.parts.heads import NO_IMAGES, ClassMeans
from clsim.parts.learners import BankFeatures, Headed


class Discriminant(nn.Module):
    """Linear discriminant analysis: a mean for each class, and one covariance for all.

    What it keeps are sums, so batches may have any size and come in any order. They and the solution are in float64:
    with a small shrinkage the matrix is badly conditioned.
    """

    second: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, num_classes: int, shrinkage: float) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.classes = ClassMeans(width, num_classes)
        self.register_buffer("second", torch.zeros(width, width, dtype=torch.float64))  # the sum of f f^T
        self.register_buffer("weight", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(num_classes, dtype=torch.float64))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add (B,D) features with (B,) labels. Call `solve` before the next prediction."""
        self.classes.add(features, labels)
        exact = features.double()
        self.second += exact.T @ exact

    def covariance(self) -> Tensor:
        """(D,D) mean of (f - m)(f - m)^T over all images, with m the mean of the image's class."""
        within = self.second - self.classes.sums.T @ self.classes.means
        return within / self.classes.counts.sum().clamp(min=1)

    def solve(self) -> None:
        """Compute weights and biases from the sums."""
        means, shrunk = self.classes.means, (1 - self.shrinkage) * self.covariance()
        shrunk.diagonal().add_(self.shrinkage)
        self.weight.copy_(torch.linalg.solve(shrunk, means.T).T)
        self.bias.copy_(-0.5 * (means * self.weight).sum(dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) features -> (B,K) scores w_c f + b_c."""
        with torch.autocast(features.device.type, enabled=False):
            scores = nn.functional.linear(features.double(), self.weight, self.bias).float()
        return scores.masked_fill(self.classes.counts == 0, NO_IMAGES)


@dataclass(kw_only=True)
class Slda(Strategy):
    """Deep SLDA: linear discriminant analysis on the frozen tower's features. Hayes and Kanan 2020, arXiv:1909.01520.

    Class means and one covariance, shared by all classes, are updated with each image; nothing is trained. Classes have
    no priors. The covariance is exact: the paper's update measures each image's distance to the mean of the images
    before it, so its covariance depends on their order, and contains the whole first image of each class.
    """

    shrinkage: float = 1e-4  # share of the identity in the matrix that is inverted

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shrinkage must be above 0 and at most 1, not {self.shrinkage}")

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Headed(BankFeatures(), Discriminant(backbone.image.out_dim, info.num_classes, self.shrinkage))

    def fit(self, s: State) -> None:
        head = s.learner_as(Headed).head
        assert isinstance(head, Discriminant)
        for batch in s.clean_batches():
            head.add(batch.known_features, batch.known_labels)
        head.solve()
