"""FeCAM (Goswami et al. 2023, arXiv:2309.14062)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, State, Strategy, StreamInfo
from clsim.parts.heads import NO_IMAGES, ClassMeans
from clsim.parts.learners import BankFeatures, Headed
from clsim.parts.text import Kept


class MahalanobisHead(nn.Module):
    """Minus the squared Mahalanobis distance to each class's mean, with the class's own correlation matrix.

    Features are scaled to unit length first. It keeps sums in float64, so images of a class may come in any batches and
    in several experiences.
    """

    second: Tensor

    def __init__(self, width: int, num_classes: int, diagonal: float, off_diagonal: float) -> None:
        super().__init__()
        self.diagonal, self.off_diagonal = diagonal, off_diagonal
        self.classes = ClassMeans(width, num_classes)
        self.register_buffer("second", torch.zeros(num_classes, width, width, dtype=torch.float64))  # sums of f f^T
        self.kept = Kept()

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add (B,D) features with (B,) labels."""
        unit = normalize(features.double(), dim=1)
        self.classes.add(unit, labels)
        for c in labels.unique().tolist():
            own = unit[labels == c]
            self.second[c] += own.T @ own

    def correlations(self, c: int) -> Tensor:
        """(D,D) shrunk covariance of class `c`, divided by its standard deviations.

        The mean of the variances is added to each variance, that of the covariances to each covariance, times
        `diagonal` and `off_diagonal`. A class without variance has the identity.
        """
        sums, mean, count = self.classes.sums[c], self.classes.means[c], self.classes.counts[c]
        covariance = (self.second[c] - torch.outer(sums, mean)) / (count - 1).clamp(min=1)
        width, variances = len(mean), covariance.diagonal()
        between = (covariance.sum() - variances.sum()) / max(1, width * (width - 1))
        shrunk = covariance + self.off_diagonal * between
        shrunk.diagonal().copy_(variances + self.diagonal * variances.mean())
        deviations = shrunk.diagonal().clamp(min=torch.finfo(shrunk.dtype).tiny).sqrt()
        found: Tensor = shrunk / torch.outer(deviations, deviations)
        found.diagonal().fill_(1.0)
        return found

    def inverses(self) -> Tensor:
        """(K,D,D) inverse correlation matrices in float32."""
        return torch.stack([torch.linalg.inv(self.correlations(c)).float() for c in range(len(self.second))])

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) features -> (B,K) logits."""
        with torch.autocast(features.device.type, enabled=False):
            differences = normalize(features.float(), dim=1) - self.classes.means.float()[:, None]  # (K,B,D)
            distances = (differences @ self.kept(self, self.inverses) * differences).sum(dim=2).T
        logits: Tensor = (-distances).masked_fill(self.classes.counts == 0, NO_IMAGES)
        return logits


@dataclass(kw_only=True)
class FeCam(Strategy):
    """FeCAM: Mahalanobis distance to class means, with a covariance for each class. Goswami et al. 2023.

    arXiv:2309.14062. Features of the frozen tower are scaled to unit length; each class's covariance is shrunk and
    divided by its standard deviations. The defaults are those of the authors' code for vision transformers. A class
    needs a matrix of the features' width squared.
    """

    diagonal: float = 1.0  # gamma_1: the part of the mean variance that is added to each variance
    off_diagonal: float = 0.0  # gamma_2: the part of the mean covariance that is added to each covariance

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "off_diagonal")
        if self.diagonal <= 0:
            raise ValueError(f"diagonal must be above 0, not {self.diagonal}")

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        head = MahalanobisHead(backbone.image.out_dim, info.num_classes, self.diagonal, self.off_diagonal)
        return Headed(BankFeatures(), head)

    def fit(self, s: State) -> None:
        head = s.learner_as(Headed).head
        assert isinstance(head, MahalanobisHead)
        for batch in s.clean_batches():
            head.add(batch.known_features, batch.known_labels)
