"""LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.errors import unknown
from clsim.families import TextTuner
from clsim.parts.tuners import LowRank

PROJECTIONS = ("qkv", "proj", "fc1", "fc2")


@dataclass(kw_only=True)
class Lora(TextTuner):
    """LoRA: low-rank additions to projections. Hu et al. 2021, arXiv:2106.09685."""

    rank: int = 4  # of the additions
    alpha: float = 4.0  # the additions count alpha / rank
    targets: tuple[str, ...] = ("qkv",)  # projections of each block: qkv, proj, fc1, fc2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rank")
        for name in self.targets:
            if name not in PROJECTIONS:
                raise unknown("projection", name, PROJECTIONS)

    def tune(self, tower: Tower) -> LowRank:
        return LowRank(tower.layers, self.rank, self.alpha, self.targets)
