"""TinyTL (Cai et al. 2020, arXiv:2007.11622)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from clsim.backbones.towers import Tower, TunerHooks
from clsim.bases import Tuner
from clsim.errors import RequestError
from clsim.parts.tuners import free_biases

Upsampling = Literal["nearest", "bilinear"]


class LiteResidual(nn.Module):
    """TinyTL's branch on a map at half its size: group convolution, norm, ReLU, 1x1 convolution, norm of gain 0.

    Cai et al. 2020, arXiv:2007.11622, section 3.2. It uses group norms, as the authors do: with batch norms, an image's
    features would depend on its batch.
    """

    def __init__(self, width: int, groups: int, norm_groups: int = 1, upsampling: Upsampling = "nearest") -> None:
        super().__init__()
        self.upsampling = upsampling
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False),
            nn.GroupNorm(norm_groups, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.GroupNorm(norm_groups, width),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,D,h,w)."""
        half = adaptive_avg_pool2d(x, (max(1, x.shape[2] // 2), max(1, x.shape[3] // 2)))
        return interpolate(self.layers(half), x.shape[2:], mode=self.upsampling)


class LiteResiduals(nn.Module, TunerHooks):
    """A lite residual in parallel to every block except the last, on the grid of patches; the paper has convolutions.

    The last block has none: only its class token is read, and that is not on the grid.
    """

    def __init__(self, tower: Tower, how: "TinyTl") -> None:
        super().__init__()
        self.grid = tower.grid
        norm_groups = tower.width // how.norm_channels if how.norm_channels else 1
        self.lite = nn.ModuleList(
            LiteResidual(tower.width, how.groups, norm_groups, how.upsampling) for _ in range(tower.depth - 1)
        )

    def branch(self, block: int, name: str, x: Tensor, out: Tensor) -> Tensor:
        if name != "attention" or block == len(self.lite):
            return out
        cells = self.grid[0] * self.grid[1]
        patches = x[:, -cells:].transpose(1, 2).unflatten(2, self.grid)
        added = self.lite[block](patches).flatten(2).transpose(1, 2).to(out.dtype)
        return torch.cat([out[:, :-cells], out[:, -cells:] + added], dim=1)


@dataclass(kw_only=True)
class TinyTl(Tuner):
    """TinyTL: biases and small residual branches in parallel to the blocks learn. Cai et al. 2020, arXiv:2007.11622.

    Made for convolutional networks; here the branches are on the grid of patches, for every block except the last.
    Preset `release` has the groups, norms and upsampling of the authors' code (mit-han-lab/tinyml). Not in clsim are
    its larger kernels, the standardised weights of its convolutions and the pretraining of its branches on ImageNet.
    """

    groups: int = 8  # groups of the branches' convolution; must divide the features of a token
    norm_channels: int = 0  # features that are normalised together; must divide those of a token; 0: all
    upsampling: Upsampling = "nearest"  # from the branch's map, half as large, to the grid of patches

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "clsim": {},
        "release": {"groups": 2, "norm_channels": 8, "upsampling": "bilinear"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "groups")
        self.at_least(0, "norm_channels")

    def tune(self, tower: Tower) -> LiteResiduals:
        for name in ("groups", "norm_channels"):
            value = getattr(self, name)
            if value and tower.width % value:
                raise RequestError(f"{name}={value} does not divide the {tower.width} features of a token")
        free_biases(tower)
        return LiteResiduals(tower, self)
