"""Tuners: what learns on a frozen transformer, each in a few lines at a tower's sites (clsim/backbones/towers.py)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, linear

from clsim.backbones.towers import ALL, Layer, Sites, Tower
from clsim.errors import RequestError


def require_blocks(tower: Tower) -> None:
    """Raises RequestError for a tower without blocks to tune."""
    if not tower.layers:
        raise RequestError(
            "this image tower is no transformer: it serves methods that read features, and has no tuners"
        )


# tokens


class Tokens(nn.Module):
    """(S, P, D) learned tokens; S is 1, or the number of blocks."""

    def __init__(self, sets: int, count: int, width: int, bound: float) -> None:
        """They start uniform within `bound` of zero."""
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(sets, count, width).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """The tokens."""
        return self.tokens


class EncodedTokens(nn.Module):
    """(1, P, D) tokens that a small network makes of learned embeddings, so that they do not move alone.

    P-Tuning, Liu et al. 2021, arXiv:2103.10385, section 3: a bidirectional LSTM of two layers and a two-layer network,
    or the network alone.
    """

    def __init__(self, count: int, width: int, hidden: int, recurrent: bool) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(count, width))
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True) if recurrent else None
        inner = 2 * hidden if recurrent else width
        self.mlp = nn.Sequential(nn.Linear(inner, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self) -> Tensor:
        """The tokens."""
        with torch.autocast(self.embeddings.device.type, enabled=False):  # a few vectors: nothing to save
            found = self.embeddings[None]
            return self.mlp(found if self.lstm is None else self.lstm(found)[0])  # type: ignore[no-any-return]

    def folded(self) -> Tokens:
        """The tokens alone, which is all that inference needs."""
        tokens = self()
        plain = Tokens(1, len(tokens[0]), tokens.shape[2], bound=0.0)
        plain.tokens.data.copy_(tokens.detach())
        return plain


class Prompts(nn.Module, Sites):
    """Tokens behind the image's own; in every block anew where there is a set for each.

    Visual prompt tuning, Jia et al. 2022, arXiv:2203.12119, eq. 4 (shallow) and 5 to 7 (deep: what a block made of its
    prompts is dropped and the next block's put there).
    """

    def __init__(self, tokens: Tokens | EncodedTokens) -> None:
        super().__init__()
        self.tokens = tokens
        # how many to drop before a block puts its own; none where they enter once
        self.own = tokens.tokens.shape[1] if isinstance(tokens, Tokens) and len(tokens.tokens) > 1 else 0

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        if block == 0:
            return self._with(tokens, 0)
        return self._with(tokens[:, : -self.own], block) if self.own else tokens

    def _with(self, tokens: Tensor, index: int) -> Tensor:
        prompts = self.tokens()[index].to(tokens.dtype)
        return torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1)


def visual_bound(tower: Tower) -> float:
    """Half the width of the uniform start of visual prompts: sqrt(6 / (3 patch^2 + D)), as in the code of VPT."""
    patch = tower.pixels.size // tower.grid[0]
    return math.sqrt(6 / (3 * patch**2 + tower.width))


# keys and values


class Pairs(nn.Module):
    """(depth, 2, P, D) learned keys and values: P-Tuning v2, Liu et al. 2022, arXiv:2110.07602, section 3."""

    def __init__(self, depth: int, count: int, width: int) -> None:
        super().__init__()
        self.pairs = nn.Parameter(0.02 * torch.randn(depth, 2, count, width))

    def forward(self) -> Tensor:
        """The keys and values."""
        return self.pairs


class EncodedPairs(nn.Module):
    """(depth, 2, P, D) keys and values that a small network makes of P learned vectors.

    Prefix tuning, Li and Liang 2021, arXiv:2101.00190, section 4.3.
    """

    def __init__(self, depth: int, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.shape = (count, depth, 2, width)
        self.embeddings = nn.Parameter(torch.randn(count, width))
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, depth * 2 * width))

    def forward(self) -> Tensor:
        """The keys and values."""
        with torch.autocast(self.embeddings.device.type, enabled=False):
            return self.network(self.embeddings).view(self.shape).permute(1, 2, 0, 3)  # type: ignore[no-any-return]

    def folded(self) -> Pairs:
        """The keys and values alone, which is all that inference needs."""
        pairs = self().detach()
        plain = Pairs(len(pairs), *pairs.shape[2:])
        plain.pairs.data.copy_(pairs)
        return plain


class Prefix(nn.Module, Sites):
    """P extra keys and values in every block.

    Every token attends to them, and they are no tokens themselves. Zeros would not be without effect: a zero key
    takes its share of the softmax.
    """

    def __init__(self, source: Pairs | EncodedPairs) -> None:
        super().__init__()
        self.source = source

    def for_pass(self) -> "PrefixPass":
        return PrefixPass(self.source().unbind())


class PrefixPass(Sites):
    """A Prefix in one forward pass: its network has run once, and every block takes its part."""

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


# branches


class Adapters(nn.Module, Sites):
    """A bottleneck behind attention and one behind the MLP of every block: x + up(GELU(down(x))).

    Houlsby et al. 2019, arXiv:1902.00751, section 2.1. Only `up` starts at zero: were `down` zero, too, no gradient
    would ever reach either.
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


class LiteResidual(nn.Module):
    """TinyTL's branch on a map at half its size: group convolution, norm, ReLU, 1x1 convolution, norm of gain 0.

    Cai et al. 2020, arXiv:2007.11622, section 3.2. Norms are of groups of channels: a batch's would let its images see
    each other.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.GroupNorm(1, width),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,D,h,w)."""
        half = adaptive_avg_pool2d(x, (max(1, x.shape[2] // 2), max(1, x.shape[3] // 2)))
        return interpolate(self.layers(half), x.shape[2:], mode="nearest")


class LiteResiduals(nn.Module, Sites):
    """A lite residual beside every block but the last, on the grid of patches; made for convolutional networks.

    The last block has none: of its tokens only the class token is read, which is not on the grid.
    """

    def __init__(self, tower: Tower, groups: int) -> None:
        super().__init__()
        self.grid = tower.grid
        self.lite = nn.ModuleList(LiteResidual(tower.width, groups) for _ in range(tower.depth - 1))

    def branch(self, block: int, name: str, x: Tensor, out: Tensor) -> Tensor:
        if name != "attention" or block == len(self.lite):
            return out
        cells = self.grid[0] * self.grid[1]
        patches = x[:, -cells:].transpose(1, 2).unflatten(2, self.grid)
        added = self.lite[block](patches).flatten(2).transpose(1, 2).to(out.dtype)
        return torch.cat([out[:, :-cells], out[:, -cells:] + added], dim=1)


# weights


class LowRank(nn.Module, Sites):
    """Low-rank additions to projections, W + alpha / rank * B A: Hu et al. 2021, arXiv:2106.09685, section 4.1."""

    def __init__(self, layers: list[Layer], rank: int, alpha: float, targets: tuple[str, ...]) -> None:
        """`targets` are of "qkv", "proj", "fc1" and "fc2". B starts at zero."""
        super().__init__()
        self.scale = alpha / rank
        self.targets = targets
        shapes = [[layer.weights(name)[0].shape for name in targets] for layer in layers]
        self.a = nn.ParameterList(nn.Parameter(torch.empty(rank, n)) for block in shapes for _, n in block)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(m, rank)) for block in shapes for m, _ in block)
        for each in self.a:
            nn.init.kaiming_uniform_(each, a=math.sqrt(5))  # the bounds of nn.Linear

    def linear(
        self, block: int, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        out = super().linear(block, name, x, weight, bias, rows)
        if name not in self.targets:
            return out
        i = block * len(self.targets) + self.targets.index(name)
        return out + self.scale * linear(linear(x, self.a[i].to(x.dtype)), self.b[i][rows].to(x.dtype)).to(out.dtype)

    def merged(self, block: int, name: str, weight: Tensor) -> Tensor:
        """(out, in) weight with the addition folded in, which is all that inference needs."""
        i = block * len(self.targets) + self.targets.index(name)
        return weight + self.scale * self.b[i] @ self.a[i]  # type: ignore[no-any-return]


class ScaleShift(nn.Module, Sites):
    """A scale and a shift of every feature behind every projection and norm: SSF, Lian et al. 2022, arXiv:2210.08823.

    The paper draws both near one and zero (eq. 5); here they start there: tuning starts from the tower as it is.
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


def free_biases(tower: Tower) -> None:
    """Let every bias of the tower learn: BitFit, Ben Zaken et al. 2021, arXiv:2106.10199."""
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_()


def free_last(tower: Tower, blocks: int) -> None:
    """Let the last blocks and the norm behind them learn. Raises RequestError if there are not as many."""
    require_blocks(tower)
    if blocks > tower.depth:
        raise RequestError(f"blocks={blocks} is more than the {tower.depth} that the tower has")
    for layer in tower.layers[-blocks:]:
        layer.block.requires_grad_()
    tower.last_norm.requires_grad_()
