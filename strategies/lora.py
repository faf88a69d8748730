"""LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.errors import unknown
from clsim.parts.tuned import reads, tuned
from clsim.parts.tuners import LowRank

PROJECTIONS = ("qkv", "proj", "fc1", "fc2")


@dataclass(kw_only=True)
class Lora(Strategy):
    """LoRA: low-rank additions to projections. Hu et al. 2021, arXiv:2106.09685."""

    lr: float = 1e-3  # learning rate
    rank: int = 4  # of the additions
    alpha: float = 4.0  # the additions count alpha / rank
    targets: tuple[str, ...] = ("qkv",)  # projections of each block: qkv, proj, fc1, fc2
    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        for name in self.targets:
            if name not in PROJECTIONS:
                raise unknown("projection", name, PROJECTIONS)

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, self.tower, lambda t: LowRank(t.layers, self.rank, self.alpha, self.targets))
