"""P-Tuning (Liu et al. 2021, arXiv:2103.10385)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from clsim import Backbone, StreamInfo
from clsim.backbones.towers import Tower
from clsim.families import TextTuner
from clsim.parts.tuned import TextsInContext
from clsim.parts.tuners import EncodedTokens, Prompts


@dataclass(kw_only=True)
class PTuning(TextTuner):
    """P-Tuning: input tokens made by a small network. Liu et al. 2021, arXiv:2103.10385.

    On the text tower they stand before the class names, as in CoOp.
    """

    prompt_length: int = 10  # tokens
    hidden: int = 96  # features of the network's hidden layers
    encoder: Literal["lstm", "mlp"] = "lstm"  # bidirectional LSTM and two-layer network, or the latter alone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prompt_length", "hidden")

    def tune(self, tower: Tower) -> Prompts:
        return Prompts(self._words(tower))

    def texts(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return TextsInContext(
            backbone.text_tower, info.class_names, self._words(backbone.text_tower), self.prompt_length
        )

    def _words(self, tower: Tower) -> EncodedTokens:
        return EncodedTokens(self.prompt_length, tower.width, self.hidden, self.encoder == "lstm")
