"""Nearest class mean: SimpleCIL (Zhou et al. 2023, arXiv:2303.07338)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import State, Strategy
from clsim.data.batches import Batch
from clsim.parts.heads import PrototypeHead


class NearestMean(nn.Module):
    """Prototypes on features from the bank."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = PrototypeHead(width, num_classes)

    def represent(self, batch: Batch) -> Tensor:
        """A batch -> (B,D) features, what the head reads."""
        return batch.features

    def forward(self, batch: Batch) -> Tensor:
        return self.head(batch.features)


@dataclass(kw_only=True)
class Ncm(Strategy):
    """Nearest class mean: cosine to each class's mean feature; no training."""

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return NearestMean(backbone.image.out_dim, info.num_classes)

    def fit(self, s: State) -> None:
        for batch in s.clean_batches():
            s.learner.head.add(batch.features, batch.labels)
