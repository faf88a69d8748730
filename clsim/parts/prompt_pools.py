"""Prompt pools: learned tokens that are selected for each image."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clsim.backbones.towers import Tower, TunerHooks
from clsim.data.batches import Batch
from clsim.errors import RequestError
from clsim.outputs import Outputs
from clsim.parts.tuners import require_blocks

Ties = Literal["lowest", "topk"]


@dataclass(frozen=True, kw_only=True)
class PoolOutputs(Outputs):
    """Outputs of a learner that selects prompts by keys."""

    chosen: Tensor  # (B,N) or (B,) ids of the prompts selected
    match: Tensor  # same shape: cosines between their keys and the query


def votes(chosen: Tensor, size: int) -> Tensor:
    """(B,N) ids -> (size,) counts of how often each id was chosen. Unlike bincount, the host never waits for a GPU."""
    return (chosen.flatten()[:, None] == torch.arange(size, device=chosen.device)).sum(dim=0)


def majority(chosen: Tensor, size: int, ties: Ties = "lowest") -> Tensor:
    """(B,N) ids -> the N ids that the batch chose most often, the same for every image.

    Ties go to the lower id, or to the id that `torch.topk` puts first among the counts of all chosen ids, in ascending
    order; the latter depends on the device.
    """
    counts = votes(chosen, size)
    if ties == "lowest":
        winners = counts.argsort(descending=True, stable=True)[: chosen.shape[1]]
    else:
        ids = (counts == 0).int().argsort(stable=True)  # those that nobody chose come last
        winners = ids[counts[ids].topk(chosen.shape[1]).indices]
    return winners.expand(len(chosen), -1)


def query_features(tower: Tower, batch: Batch, clean: bool) -> Tensor:
    """(B,D) features of the frozen tower without prompts: of the clean images, or of those in the batch."""
    if clean:
        return batch.known_features
    with torch.no_grad():
        features: Tensor = tower(batch.known_images)
        return features.float()


class PromptPool(nn.Module):
    """M prompts of L tokens, each with a key: Wang et al. 2022, arXiv:2112.08654, section 4."""

    def __init__(self, size: int, length: int, width: int, low: float, high: float) -> None:
        """Keys and prompts start uniform in [low, high]."""
        super().__init__()
        self.keys = nn.Parameter(torch.empty(size, width).uniform_(low, high))
        self.prompts = nn.Parameter(torch.empty(size, length, width).uniform_(low, high))

    def similarity(self, query: Tensor) -> Tensor:
        """(B,D) queries -> (B,M) cosines to the keys."""
        return cosines(query, self.keys)

    def take(self, chosen: Tensor) -> Tensor:
        """(B,N) prompt ids -> (B, N*L, D) tokens."""
        return self.prompts[chosen].flatten(1, 2)


def off_orthonormal(rows: Tensor) -> Tensor:
    """(M,E) -> the mean square of B B' - I, as in the paper's code."""
    distance: Tensor = rows @ rows.T - torch.eye(len(rows), device=rows.device)
    return distance.square().mean()


def orthonormal(tasks: int, blocks: int, components: int, width: int) -> Tensor:
    """(tasks, blocks, components, width) unit vectors; in a block the first `width` vectors are orthogonal to each
    other, then the next `width`."""
    count = tasks * components
    each = [
        torch.cat([nn.init.orthogonal_(torch.empty(min(width, count - i), width)) for i in range(0, count, width)])
        for _ in range(blocks)
    ]
    rows: Tensor = torch.stack(each, dim=1).unflatten(0, (tasks, components))
    return rows.transpose(1, 2).contiguous()


def gram_schmidt(before: Tensor, count: int) -> Tensor:
    """(N,D) vectors -> (count,D) new unit vectors: random ones without their projections on each earlier vector.

    The vectors before may have any angles to each other; then a new one is orthogonal to them only nearly, as in the
    paper's code.
    """
    rows = before
    for _ in range(count):
        drawn = torch.randn(rows.shape[1]).to(rows.device)
        shares = (rows @ drawn) / rows.square().sum(dim=1)
        rows = torch.cat([rows, (drawn - shares @ rows)[None]])
    return nn.functional.normalize(rows[len(before) :], dim=1)


class Prefixes(TunerHooks):
    """Keys and values put before those of some blocks; queries and the pooled tokens do not change."""

    def __init__(self, prompts: dict[int, Tensor]) -> None:
        """`prompts`: block -> (B,L,D), or (1,L,D) for all images; the first half is keys, the second half values."""
        self.prompts = prompts

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if block not in self.prompts:
            return keys, values
        added = self.prompts[block].to(keys.dtype).expand(len(keys), -1, -1).chunk(2, dim=1)
        return torch.cat([added[0], keys], dim=1), torch.cat([added[1], values], dim=1)


class AppendedTokens(TunerHooks):
    """Tokens appended to the input of the first block."""

    def __init__(self, tokens: Tensor) -> None:
        """`tokens`: (B,L,D)."""
        self.tokens = tokens

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        return torch.cat([tokens, self.tokens.to(tokens.dtype)], dim=1) if block == 0 else tokens


class Progress(nn.Module):
    """Which experience is being learned, and which experiences have begun.

    `Strategy.begin` sets it. It is not saved, because resuming and loading call `begin` again.
    """

    mask: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.current = 0  # the experience that is being learned, or the last one learned
        self.begun: tuple[int, ...] = ()  # ascending
        self.register_buffer("mask", torch.zeros(count, dtype=torch.bool), persistent=False)  # true if begun

    def begin(self, index: int) -> None:
        """Begin the experience `index`."""
        self.current = index
        self.begun = tuple(sorted({*self.begun, index}))
        self.mask[index] = True

    def known_task(self, batch: Batch) -> Tensor | None:
        """(B,) task of each image if known: in training, or if the protocol reveals it."""
        task = self.current if self.training else batch.task
        return None if task is None else torch.full((len(batch),), task, device=self.mask.device)

    def detected(self, batch: Batch, chosen: Tensor) -> Tensor | None:
        """(B,) `chosen` if it is a detection: the task was not known, and an experience has begun; else None."""
        return chosen if self.begun and not self.training and batch.task is None else None


class PerExperience(nn.Module):
    """One parameter per experience."""

    def __init__(self, initial: Tensor) -> None:
        """`initial`: (T,...), one for each of T experiences."""
        super().__init__()
        self.each = nn.ParameterList(initial.unbind())

    def forward(self, current: int) -> Tensor:
        """(T,...) all parameters; only the parameter of experience `current` gets a gradient.

        The others get no gradient: with momentum or weight decay, even a gradient of zero would change them.
        """
        return torch.stack([own if i == current else own.detach() for i, own in enumerate(self.each)])


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(B,D) and (M,D) -> (B,M), in float32 for every precision of the tower."""
    with torch.autocast(queries.device.type, enabled=False):
        return nn.functional.normalize(queries, dim=1) @ nn.functional.normalize(keys, dim=1).T


def blocks_of(tower: Tower, asked: int | None, twelfths: int) -> int:
    """The number of blocks: `asked`, or by default `twelfths` / 12 of the tower (the papers' towers have 12 blocks)."""
    return -(-tower.depth * twelfths // 12) if asked is None else asked


def check_depth(tower: Tower, needed: int, what: str) -> None:
    """Raises RequestError if the tower has fewer blocks than `what` needs, or is not a transformer."""
    require_blocks(tower)
    if needed > tower.depth:
        raise RequestError(f"{what} need {needed} blocks; the tower has {tower.depth}")
