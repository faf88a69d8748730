"""P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from clsim.backbones.towers import Tower
from clsim.bases import TextTuner
from clsim.parts.tuners import Pairs, Prefix, key_width


@dataclass(kw_only=True)
class PTuningV2(TextTuner):
    """P-Tuning v2: extra keys and values in every block, learned directly. Liu et al. 2022, arXiv:2110.07602.

    They start close to zero. In the authors' code (THUDM/P-tuning-v2) they start as an embedding, N(0, 1): preset
    `release`. That code also drops them out at BERT's rate, which is not in clsim.
    """

    lr: float = 5e-3
    prefix_length: int = 10  # keys and values in each block
    spread: float = 0.02  # standard deviation of the start values

    presets: ClassVar[dict[str, dict[str, Any]]] = {"clsim": {}, "release": {"spread": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prefix_length")
        self.at_least(0, "spread")

    def tune(self, tower: Tower) -> Prefix:
        return Prefix(Pairs(tower.depth, self.prefix_length, key_width(tower), self.spread))
