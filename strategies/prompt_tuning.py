"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691)."""

from dataclasses import dataclass

import torch
from torch import nn

from clsim import Backbone, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import TextTuner
from clsim.parts.learners import TextsInContext
from clsim.parts.tuners import Prompts, Tokens


@dataclass(kw_only=True)
class PromptTuning(TextTuner):
    """Prompt tuning: learned input tokens. Lester et al. 2021, arXiv:2104.08691.

    On the image tower they start uniform in [-0.5, 0.5]. On the text tower they are before the class names, as in CoOp,
    and start as random words of the vocabulary. These are two of the paper's three initialisations.
    """

    lr: float = 5e-3
    prompt_length: int = 10  # tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prompt_length")

    def tune(self, tower: Tower) -> Prompts:
        return Prompts(Tokens(1, self.prompt_length, tower.width, 0.5))

    def texts(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        text = backbone.text_tower
        words = Tokens(1, self.prompt_length, text.width, 0.0)
        vocabulary = text.token_embedding.weight
        drawn = torch.randint(len(vocabulary), (self.prompt_length,))
        words.tokens.data.copy_(vocabulary[drawn])
        return TextsInContext(text, info.class_names, words, self.prompt_length)
