"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.backbones.towers import Tower
from clsim.parts.tuned import reads, tuned
from clsim.parts.tuners import EncodedPairs, Prefix, key_width


@dataclass(kw_only=True)
class PrefixTuning(Strategy):
    """Prefix tuning: extra keys and values in each block, from a small network. Li and Liang 2021, arXiv:2101.00190."""

    lr: float = 1e-3  # learning rate
    prefix_length: int = 10  # keys and values in each block
    hidden: int = 64  # features of the network's hidden layer
    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_length < 1:
            raise ValueError(f"prefix_length must be at least 1, not {self.prefix_length}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden}")

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        def tune(t: Tower) -> Prefix:
            return Prefix(EncodedPairs(t.depth, self.prefix_length, key_width(t), self.hidden))

        return tuned(backbone, info, self.tower, tune)
