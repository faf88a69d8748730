"""Visual prompt tuning, shallow (Jia et al. 2022, arXiv:2203.12119)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.bases import Tuner
from clsim.parts.tuners import Prompts, Tokens, visual_bound


@dataclass(kw_only=True)
class VptShallow(Tuner):
    """VPT-shallow: learned tokens added to the image's own at the first block. Jia et al. 2022, arXiv:2203.12119."""

    lr: float = 5e-3
    prompt_length: int = 10  # tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prompt_length")

    def tune(self, tower: Tower) -> Prompts:
        return Prompts(Tokens(1, self.prompt_length, tower.width, visual_bound(tower)))
