"""Tuners: trainable additions to a frozen transformer, through the hooks of a tower (clsim/backbones/towers.py)."""

import math

import torch
from torch import Tensor, nn

from clsim.backbones.towers import Tower, TunerHooks
from clsim.errors import RequestError


def require_blocks(tower: Tower) -> None:
    """Raises RequestError for a tower without blocks to tune."""
    if not tower.layers:
        raise RequestError(
            "this image tower is no transformer: it works with methods that read features, but cannot be tuned"
        )


# tokens


class Tokens(nn.Module):
    """(S, P, D) learned tokens; S is 1, or the number of blocks."""

    def __init__(self, sets: int, count: int, width: int, bound: float) -> None:
        """They start uniform in [-bound, bound]."""
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(sets, count, width).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """The tokens."""
        return self.tokens


class Prompts(nn.Module, TunerHooks):
    """Tokens appended to the image's own tokens: once, or new ones in every block if there is a set for each block.

    Visual prompt tuning, Jia et al. 2022, arXiv:2203.12119, eq. 4 (shallow) and 5 to 7 (deep: a block's outputs for its
    prompts are dropped and replaced by the next block's prompts).
    """

    def __init__(self, tokens: nn.Module) -> None:
        """`tokens()` returns (S,P,D): one set, or one for each block."""
        super().__init__()
        self.tokens = tokens
        # number of prompts that each block replaces; 0 if they enter only once
        self.own = tokens.tokens.shape[1] if isinstance(tokens, Tokens) and len(tokens.tokens) > 1 else 0

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        if block == 0:
            return self._with(tokens, 0)
        return self._with(tokens[:, : -self.own], block) if self.own else tokens

    def _with(self, tokens: Tensor, index: int) -> Tensor:
        prompts = self.tokens()[index].to(tokens.dtype)
        return torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1)


def visual_bound(tower: Tower) -> float:
    """The bound of the uniform start values of visual prompts: sqrt(6 / (3 patch^2 + D)), as in the code of VPT."""
    patch = tower.pixels.size // tower.grid[0]
    return math.sqrt(6 / (3 * patch**2 + tower.width))


# keys and values


class Pairs(nn.Module):
    """(depth, 2, P, D) learned keys and values: P-Tuning v2, Liu et al. 2022, arXiv:2110.07602, section 3."""

    def __init__(self, depth: int, count: int, width: int, spread: float = 0.02) -> None:
        """They start in N(0, spread^2)."""
        super().__init__()
        self.pairs = nn.Parameter(spread * torch.randn(depth, 2, count, width))

    def forward(self) -> Tensor:
        """The keys and values."""
        return self.pairs


class Prefix(nn.Module, TunerHooks):
    """P extra keys and values in every block.

    Every token attends to them, but they are not tokens themselves. Even zeros have an effect: a zero key takes a share
    of the softmax.
    """

    def __init__(self, source: nn.Module) -> None:
        """`source()` returns (depth,2,P,D) keys and values."""
        super().__init__()
        self.source = source

    def for_pass(self) -> "PrefixPass":
        return PrefixPass(self.source().unbind())


class PrefixPass(TunerHooks):
    """A Prefix in one forward pass: its network runs once, and every block takes its part."""

    def __init__(self, made: tuple[Tensor, ...]) -> None:
        """`made`: for each block (2,P,D) keys and values."""
        self.made = made

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (each.to(keys.dtype).expand(len(keys), -1, -1) for each in self.made[block])
        return torch.cat([k, keys], dim=1), torch.cat([v, values], dim=1)


def key_width(tower: Tower) -> int:
    """Features of a block's keys, over all heads."""
    require_blocks(tower)
    return len(tower.layers[0].weights("qkv")[0]) // 3


# weights


def free_biases(tower: Tower) -> None:
    """Let every bias of the tower learn: BitFit, Ben Zaken et al. 2021, arXiv:2106.10199."""
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_()
