"""P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.backbones.towers import Tower
from clsim.parts.tuned import reads, tuned
from clsim.parts.tuners import Pairs, Prefix, key_width


@dataclass(kw_only=True)
class PTuningV2(Strategy):
    """P-Tuning v2: extra keys and values in every block, learned as they are. Liu et al. 2022, arXiv:2110.07602."""

    lr: float = 5e-3  # learning rate
    prefix_length: int = 10  # keys and values in each block
    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_length < 1:
            raise ValueError(f"prefix_length must be at least 1, not {self.prefix_length}")

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        def tune(t: Tower) -> Prefix:
            return Prefix(Pairs(t.depth, self.prefix_length, key_width(t)))

        return tuned(backbone, info, self.tower, tune)
