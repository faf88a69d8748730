"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from clsim import Strategy
from clsim.backbones.towers import Tower
from clsim.parts.tuned import TextsInContext, reads, tuned
from clsim.parts.tuners import Prompts, Tokens


@dataclass(kw_only=True)
class PromptTuning(Strategy):
    """Prompt tuning: learned input tokens. Lester et al. 2021, arXiv:2104.08691.

    On the image tower they start uniform in [-0.5, 0.5]; on the text tower they stand before the class names, as in
    CoOp, and start as words of the vocabulary, drawn at random: two of the paper's three ways.
    """

    lr: float = 5e-3  # learning rate
    prompt_length: int = 10  # tokens
    tower: Literal["image", "text", "both"] = "image"  # what is tuned; with text, the cosine to class names decides

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1, not {self.prompt_length}")

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names read by a text tower it can."""
        return self.tower != "image"

    def reads(self) -> set[str]:
        return reads(self.tower)

    def build(self, backbone: Any, info: Any) -> nn.Module:
        def tune(t: Tower) -> Prompts:
            return Prompts(Tokens(1, self.prompt_length, t.width, 0.5))

        def texts() -> nn.Module:
            words = Tokens(1, self.prompt_length, backbone.text.width, 0.0)
            vocabulary = backbone.text.token_embedding.weight
            drawn = torch.randint(len(vocabulary), (self.prompt_length,))
            words.tokens.data.copy_(vocabulary[drawn])
            return TextsInContext(backbone.text, info.class_names, words, self.prompt_length)

        return tuned(backbone, info, self.tower, tune, texts)
