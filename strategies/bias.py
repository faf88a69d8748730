"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.parts.tuned import only_weights, reads, tuned
from clsim.parts.tuners import free_biases


@dataclass(kw_only=True)
class Bias(Strategy):
    """BitFit: every bias learns, those of norms and of the embedding included. Ben Zaken et al. 2021, arXiv:2106.10199.

    Cai et al. 2020 call the same "bias" (arXiv:2007.11622).
    """

    lr: float = 1e-3  # learning rate
    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, self.tower, only_weights(free_biases))
