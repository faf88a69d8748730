"""SSF (Lian et al. 2022, arXiv:2210.08823)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim.backbones.towers import ALL, Tower, TunerHooks
from clsim.bases import Tuner


class ScaleShift(nn.Module, TunerHooks):
    """A scale and a shift of every feature after every projection and norm: SSF, Lian et al. 2022, arXiv:2210.08823.

    The paper draws them at random near one and zero (eq. 5). Here they start exactly there, so that tuning starts from
    the unchanged tower.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        sizes = {
            f"{i} {n}": len(layer.weights(n)[0]) for i, layer in enumerate(tower.layers) for n in layer.names.linears
        }
        sizes |= {f"{i} {name}": tower.width for i in range(tower.depth) for name in ("norm1", "norm2")}
        sizes |= {f"{tower.depth} norm": tower.width, "embedding": tower.width}
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in sizes.items()})
        self.shift = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})

    def _moved(self, name: str, x: Tensor, rows: slice = ALL) -> Tensor:
        return x * self.scale[name][rows].to(x.dtype) + self.shift[name][rows].to(x.dtype)  # type: ignore[no-any-return]

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        return self._moved("embedding", tokens) if block == 0 else tokens

    def linear(
        self, block: int, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        return self._moved(f"{block} {name}", super().linear(block, name, x, weight, bias, rows), rows)

    def norm(self, block: int, name: str, x: Tensor, module: nn.Module) -> Tensor:
        return self._moved(f"{block} {name}", module(x))


@dataclass(kw_only=True)
class Ssf(Tuner):
    """SSF: a scale and a shift after every projection and norm. Lian et al. 2022, arXiv:2210.08823."""

    def tune(self, tower: Tower) -> ScaleShift:
        return ScaleShift(tower)
