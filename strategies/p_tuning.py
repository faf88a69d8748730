"""P-Tuning (Liu et al. 2021, arXiv:2103.10385)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clsim import Strategy
from clsim.backbones.towers import Tower
from clsim.parts.tuned import TextsInContext, reads, tuned
from clsim.parts.tuners import EncodedTokens, Prompts


@dataclass(kw_only=True)
class PTuning(Strategy):
    """P-Tuning: input tokens made by a small network. Liu et al. 2021, arXiv:2103.10385.

    On the text tower they stand before the class names, as in CoOp.
    """

    lr: float = 1e-3  # learning rate
    prompt_length: int = 10  # tokens
    hidden: int = 96  # features of the network's hidden layers
    encoder: Literal["lstm", "mlp"] = "lstm"  # bidirectional LSTM and two-layer network, or the latter alone
    tower: Literal["image", "text", "both"] = "image"  # what is tuned; with text, the cosine to class names decides

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_length", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        def words(t: Tower) -> EncodedTokens:
            return EncodedTokens(self.prompt_length, t.width, self.hidden, self.encoder == "lstm")

        def texts() -> nn.Module:
            return TextsInContext(backbone.text, info.class_names, words(backbone.text), self.prompt_length)

        return tuned(backbone, info, self.tower, lambda t: Prompts(words(t)), texts)
