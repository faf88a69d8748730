"""P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.bases import TextTuner
from clsim.parts.tuners import Pairs, Prefix, key_width


@dataclass(kw_only=True)
class PTuningV2(TextTuner):
    """P-Tuning v2: extra keys and values in every block, learned directly. Liu et al. 2022, arXiv:2110.07602."""

    lr: float = 5e-3
    prefix_length: int = 10  # keys and values in each block

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prefix_length")

    def tune(self, tower: Tower) -> Prefix:
        return Prefix(Pairs(tower.depth, self.prefix_length, key_width(tower)))
