"""Partial fine-tuning (Yosinski et al. 2014, arXiv:1411.1792)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import Strategy
from clsim.parts.tuned import only_weights, tuned
from clsim.parts.tuners import free_last


@dataclass(kw_only=True)
class Partial(Strategy):
    """Partial-k: the last blocks learn, and the norm behind them. Yosinski et al. 2014, arXiv:1411.1792."""

    lr: float = 3e-4  # learning rate
    blocks: int = 1  # how many, from the end

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, "image", only_weights(lambda tower: free_last(tower, self.blocks)))
