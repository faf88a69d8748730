"""LoRA (Hu et al. 2021, arXiv:2106.09685)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clsim.backbones.towers import ALL, Block, Tower, TunerHooks
from clsim.bases import TextTuner
from clsim.errors import RequestError, unknown

PROJECTIONS = ("qkv", "proj", "fc1", "fc2")


class LowRank(nn.Module, TunerHooks):
    """Low-rank additions to projections, W + alpha / rank * B A: Hu et al. 2021, arXiv:2106.09685, section 4.1."""

    def __init__(self, layers: Sequence[Block], rank: int, alpha: float, targets: tuple[str, ...]) -> None:
        """`targets`: some of "qkv", "proj", "fc1" and "fc2". B starts at zero."""
        super().__init__()
        self.scale = alpha / rank
        self.targets = targets
        shapes = [[layer.weights(name)[0].shape for name in targets] for layer in layers]
        self.a = nn.ParameterList(nn.Parameter(torch.empty(rank, n)) for block in shapes for _, n in block)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(m, rank)) for block in shapes for m, _ in block)
        for each in self.a:
            nn.init.kaiming_uniform_(each, a=math.sqrt(5))  # same bounds as nn.Linear

    def linear(
        self, block: int, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        out = super().linear(block, name, x, weight, bias, rows)
        if name not in self.targets:
            return out
        i = block * len(self.targets) + self.targets.index(name)
        return out + self.scale * linear(linear(x, self.a[i].to(x.dtype)), self.b[i][rows].to(x.dtype)).to(out.dtype)

    def merged(self, block: int, name: str, weight: Tensor) -> Tensor:
        """(out, in) weight with the addition merged; inference needs nothing else."""
        i = block * len(self.targets) + self.targets.index(name)
        return weight + self.scale * self.b[i] @ self.a[i]  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Lora(TextTuner):
    """LoRA: low-rank additions to projections. Hu et al. 2021, arXiv:2106.09685."""

    rank: int = 4  # rank of the additions
    alpha: float = 4.0  # the additions are multiplied by alpha / rank
    targets: tuple[str, ...] = ("qkv",)  # projections of each block: qkv, proj, fc1, fc2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rank")
        for name in self.targets:
            if name not in PROJECTIONS:
                raise unknown("projection", name, PROJECTIONS)

    def tune(self, tower: Tower) -> LowRank:
        if self.rank > tower.width:
            raise RequestError(f"rank={self.rank} is above the {tower.width} features of a token")
        return LowRank(tower.layers, self.rank, self.alpha, self.targets)
