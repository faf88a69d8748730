"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import Part, Strategy
from clsim.parts.memory import Reservoir
from clsim.strategies.finetune import Finetuned


@dataclass(kw_only=True)
class Er(Strategy):
    """Experience replay: fine-tuning on the stream and as many remembered images."""

    lr: float = 3e-4  # learning rate
    memory: int = 500  # images kept, in all or (per_class) of each class
    per_class: bool = False  # a reservoir for each class

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return Finetuned(backbone.image, backbone.image.out_dim, info.num_classes)

    def parts(self) -> Sequence[Part]:
        return [Reservoir(self.memory, self.per_class)]
