"""Joint training: the upper bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import Strategy
from clsim.data.streams import merged
from clsim.strategies.finetune import Finetuned


@dataclass(kw_only=True)
class Joint(Strategy):
    """Joint training: fine-tuning on all experiences at once; nothing can be forgotten."""

    lr: float = 3e-4  # learning rate

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Finetuned(backbone.image, backbone.image.out_dim, info.num_classes)

    def experiences(self, stream: Sequence[Any]) -> Sequence[Any]:
        return [merged(stream)]
