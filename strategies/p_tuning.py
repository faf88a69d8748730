"""P-Tuning (Liu et al. 2021, arXiv:2103.10385)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clsim import Backbone, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import TextTuner
from clsim.parts.learners import TextsInContext
from clsim.parts.tuners import Prompts, Tokens


class EncodedTokens(nn.Module):
    """(1, P, D) tokens that a small network makes from learned embeddings, so that they are trained together.

    P-Tuning, Liu et al. 2021, arXiv:2103.10385, section 3: a bidirectional two-layer LSTM and a two-layer network,
    or only the network.
    """

    def __init__(self, count: int, width: int, hidden: int, recurrent: bool) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(count, width))
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True) if recurrent else None
        inner = 2 * hidden if recurrent else width
        self.mlp = nn.Sequential(nn.Linear(inner, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self) -> Tensor:
        """The tokens."""
        with torch.autocast(self.embeddings.device.type, enabled=False):  # few vectors: bfloat16 would save nothing
            found = self.embeddings[None]
            return self.mlp(found if self.lstm is None else self.lstm(found)[0])  # type: ignore[no-any-return]

    def folded(self) -> Tokens:
        """The tokens only; inference needs nothing else."""
        tokens = self()
        plain = Tokens(1, len(tokens[0]), tokens.shape[2], bound=0.0)
        plain.tokens.data.copy_(tokens.detach())
        return plain


@dataclass(kw_only=True)
class PTuning(TextTuner):
    """P-Tuning: input tokens made by a small network. Liu et al. 2021, arXiv:2103.10385.

    On the text tower they are before the class names, as in CoOp.
    """

    prompt_length: int = 10  # tokens
    hidden: int = 96  # features of the network's hidden layers
    encoder: Literal["lstm", "mlp"] = "lstm"  # bidirectional LSTM and two-layer network, or only the network

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
