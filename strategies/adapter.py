"""Adapters (Houlsby et al. 2019, arXiv:1902.00751)."""

from dataclasses import dataclass

from torch import Tensor, nn

from clsim.backbones.towers import Tower, TunerHooks
from clsim.bases import TextTuner


class Adapters(nn.Module, TunerHooks):
    """A bottleneck after attention and one after the MLP of every block: x + up(GELU(down(x))).

    Houlsby et al. 2019, arXiv:1902.00751, section 2.1. Only `up` starts at zero: if `down` were zero, too, neither
    would ever get a gradient.
    """

    def __init__(self, depth: int, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, bottleneck) for _ in range(2 * depth))
        self.up = nn.ModuleList(nn.Linear(bottleneck, width) for _ in range(2 * depth))
        for each in self.up:
            nn.init.zeros_(each.weight)  # type: ignore[arg-type]
            nn.init.zeros_(each.bias)  # type: ignore[arg-type]

    def branch(self, block: int, name: str, x: Tensor, out: Tensor) -> Tensor:
        i = 2 * block + (name == "mlp")
        return out + self.up[i](nn.functional.gelu(self.down[i](out))).to(out.dtype)  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Adapter(TextTuner):
    """Adapters: a bottleneck after the attention and the MLP of every block. Houlsby et al. 2019, arXiv:1902.00751."""

    bottleneck: int = 16  # features of the bottleneck

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck")

    def tune(self, tower: Tower) -> Adapters:
        return Adapters(tower.depth, tower.width, self.bottleneck)
