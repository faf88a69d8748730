"""Adapters (Houlsby et al. 2019, arXiv:1902.00751)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.families import TextTuner
from clsim.parts.tuners import Adapters


@dataclass(kw_only=True)
class Adapter(TextTuner):
    """Adapters: a bottleneck behind the attention and the MLP of every block. Houlsby et al. 2019, arXiv:1902.00751."""

    bottleneck: int = 16  # features of the bottleneck

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck")

    def tune(self, tower: Tower) -> Adapters:
        return Adapters(tower.depth, tower.width, self.bottleneck)
