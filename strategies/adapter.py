"""Adapters (Houlsby et al. 2019, arXiv:1902.00751)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.parts.tuned import reads, tuned
from clsim.parts.tuners import Adapters


@dataclass(kw_only=True)
class Adapter(Strategy):
    """Adapters: a bottleneck behind the attention and the MLP of every block. Houlsby et al. 2019, arXiv:1902.00751."""

    lr: float = 1e-3  # learning rate
    bottleneck: int = 16  # features of the bottleneck
    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, not {self.bottleneck}")

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, self.tower, lambda t: Adapters(t.depth, t.width, self.bottleneck))
