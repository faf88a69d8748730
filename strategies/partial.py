"""Partial fine-tuning (Yosinski et al. 2014, arXiv:1411.1792)."""

from dataclasses import dataclass

from clsim.backbones.towers import PLAIN, Sites, Tower
from clsim.families import Tuner
from clsim.parts.tuners import free_last


@dataclass(kw_only=True)
class Partial(Tuner):
    """Partial-k: the last blocks learn, and the norm behind them. Yosinski et al. 2014, arXiv:1411.1792."""

    lr: float = 3e-4
    blocks: int = 1  # how many, from the end

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "blocks")

    def tune(self, tower: Tower) -> Sites:
        free_last(tower, self.blocks)
        return PLAIN
