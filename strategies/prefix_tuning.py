"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.families import TextTuner
from clsim.parts.tuners import EncodedPairs, Prefix, key_width


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
