"""SSF (Lian et al. 2022, arXiv:2210.08823)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim.backbones.towers import ALL, Tower, TunerHooks
from clsim.bases import Tuner


class ScaleShift(nn.Module, TunerHooks):
    """A scale and a shift of every feature after every projection and norm: SSF, Lian et al. 2022, arXiv:2210.08823.

    The first are on the embedded patches, before the class token and the positions are added, as in the authors' code.
    """

    def __init__(self, tower: Tower, spread: float = 0.0) -> None:
        """Scales start in N(1, spread^2), shifts in N(0, spread^2)."""
        super().__init__()
        sizes = {
            f"{i} {n}": len(layer.weights(n)[0]) for i, layer in enumerate(tower.layers) for n in layer.names.linears
        }
        sizes |= {f"{i} {name}": tower.width for i in range(tower.depth) for name in ("norm1", "norm2")}
        sizes |= {f"{tower.depth} norm": tower.width, "patches": tower.width}
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in sizes.items()})
        self.shift = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})
        if spread > 0:
            for parameters, mean in ((self.scale, 1.0), (self.shift, 0.0)):
                for parameter in parameters.values():
                    nn.init.normal_(parameter, mean, spread)

    def _moved(self, name: str, x: Tensor, rows: slice = ALL) -> Tensor:
        return x * self.scale[name][rows].to(x.dtype) + self.shift[name][rows].to(x.dtype)  # type: ignore[no-any-return]

    def patches(self, tokens: Tensor) -> Tensor:
        return self._moved("patches", tokens)

    def linear(
        self, block: int, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        return self._moved(f"{block} {name}", super().linear(block, name, x, weight, bias, rows), rows)

    def norm(self, block: int, name: str, x: Tensor, module: nn.Module) -> Tensor:
        return self._moved(f"{block} {name}", module(x))


@dataclass(kw_only=True)
class Ssf(Tuner):
    """SSF: a scale and a shift after every projection and norm. Lian et al. 2022, arXiv:2210.08823.

    Where they are is equal to the authors' code. There they start at random (`spread=0.02`, eq. 5 of the paper); by
    default they start at one and zero, so that tuning starts from the unchanged tower. The authors' recipe has AdamW,
    a moving average of the weights and timm's augmentation; the last two are not in clsim.
    """

    spread: float = 0.0  # standard deviation of the start values of scales and shifts

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "spread")

    def tune(self, tower: Tower) -> ScaleShift:
        return ScaleShift(tower, self.spread)
