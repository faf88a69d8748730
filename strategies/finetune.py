"""Sequential fine-tuning of every weight: the baseline that forgets."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsim import Strategy
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead


class Finetuned(nn.Module):
    """A tower that learns, under a linear head."""

    def __init__(self, tower: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.tower = tower.requires_grad_()
        self.head = LinearHead(width, num_classes)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.tower(batch.images))


@dataclass(kw_only=True)
class Finetune(Strategy):
    """Fine-tuning: cross-entropy on each experience in turn, all weights."""

    lr: float = 3e-4  # learning rate

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Finetuned(backbone.image, backbone.image.out_dim, info.num_classes)
