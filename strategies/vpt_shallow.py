"""Visual prompt tuning, shallow (Jia et al. 2022, arXiv:2203.12119)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import Strategy
from clsim.backbones.towers import Tower
from clsim.parts.tuned import tuned
from clsim.parts.tuners import Prompts, Tokens, visual_bound


@dataclass(kw_only=True)
class VptShallow(Strategy):
    """VPT-shallow: learned tokens beside the image's own, from the first block. Jia et al. 2022, arXiv:2203.12119."""

    lr: float = 5e-3  # learning rate
    prompt_length: int = 10  # tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1, not {self.prompt_length}")

    def build(self, backbone: Any, info: Any) -> nn.Module:
        def tune(t: Tower) -> Prompts:
            return Prompts(Tokens(1, self.prompt_length, t.width, visual_bound(t)))

        return tuned(backbone, info, "image", tune)
