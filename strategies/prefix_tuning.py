"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim.backbones.towers import Tower
from clsim.bases import TextTuner
from clsim.parts.tuners import Pairs, Prefix, key_width


class EncodedPairs(nn.Module):
    """(depth, 2, P, D) keys and values that a small network makes from P learned vectors.

    Prefix tuning, Li and Liang 2021, arXiv:2101.00190, section 4.3.
    """

    def __init__(self, depth: int, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.shape = (count, depth, 2, width)
        self.embeddings = nn.Parameter(torch.randn(count, width))
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, depth * 2 * width))

    def forward(self) -> Tensor:
        """The keys and values."""
        with torch.autocast(self.embeddings.device.type, enabled=False):
            return self.network(self.embeddings).view(self.shape).permute(1, 2, 0, 3)  # type: ignore[no-any-return]

    def folded(self) -> Pairs:
        """The keys and values only; inference needs nothing else."""
        pairs = self().detach()
        plain = Pairs(len(pairs), *pairs.shape[2:])
        plain.pairs.data.copy_(pairs)
        return plain


@dataclass(kw_only=True)
class PrefixTuning(TextTuner):
    """Prefix tuning: extra keys and values in each block, from a small network. Li and Liang 2021, arXiv:2101.00190."""

    prefix_length: int = 10  # keys and values in each block
    hidden: int = 64  # features of the network's hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prefix_length", "hidden")

    def tune(self, tower: Tower) -> Prefix:
        return Prefix(EncodedPairs(tower.depth, self.prefix_length, key_width(tower), self.hidden))
