"""A linear head on the frozen tower."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import Strategy
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead


class LinearProbe(nn.Module):
    """A linear head on features from the bank."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = LinearHead(width, num_classes)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(batch.features)


@dataclass(kw_only=True)
class Linear(Strategy):
    """Linear probing: a head on the frozen tower's features, each experience in turn."""

    lr: float = 3e-3  # learning rate

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return LinearProbe(backbone.image.out_dim, info.num_classes)
