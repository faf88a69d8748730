"""Partial fine-tuning (Yosinski et al. 2014, arXiv:1411.1792)."""

from dataclasses import dataclass

from clsim.backbones.towers import PLAIN, Tower, TunerHooks
from clsim.bases import Tuner
from clsim.errors import RequestError
from clsim.parts.tuners import require_blocks


def free_last(tower: Tower, blocks: int) -> None:
    """Let the last blocks and the norm after them learn. Raises RequestError if the tower has fewer blocks."""
    require_blocks(tower)
    if blocks > tower.depth:
        raise RequestError(f"blocks={blocks} is more than the {tower.depth} that the tower has")
    for layer in tower.layers[-blocks:]:
        layer.block.requires_grad_()
    tower.last_norm.requires_grad_()


@dataclass(kw_only=True)
class Partial(Tuner):
    """Partial-k: the last blocks and the norm after them learn. Yosinski et al. 2014, arXiv:1411.1792."""

    lr: float = 3e-4
    blocks: int = 1  # number of blocks, counted from the last

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "blocks")

    def tune(self, tower: Tower) -> TunerHooks:
        free_last(tower, self.blocks)
        return PLAIN
