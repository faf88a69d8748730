"""Prompt pools: learned tokens that an image chooses for itself."""

import numpy as np
import torch
from torch import Tensor, nn

from clsim.backbones.towers import Sites, Tower
from clsim.data.batches import Batch
from clsim.errors import RequestError
from clsim.parts.tuners import require_blocks


class PromptPool(nn.Module):
    """M prompts of L tokens, each under a key; a query takes the prompts whose keys are nearest.

    Wang et al. 2022, arXiv:2112.08654, section 4.
    """

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


def nearest(similarity: Tensor, count: int) -> Tensor:
    """(B,M) cosines -> (B,count) ids, nearest first, each image for itself."""
    return similarity.topk(count, dim=1).indices


def majority(chosen: Tensor, size: int) -> Tensor:
    """(B,N) ids -> the N ids that the batch chose most often, for every image alike; ties go to the lower id."""
    votes = chosen.flatten().bincount(minlength=size)
    winners = votes.argsort(descending=True, stable=True)[: chosen.shape[1]]
    return winners.expand(len(chosen), -1)


class Prefixes(Sites):
    """Keys and values in front of those of some blocks; queries and the tokens that are pooled stay as they are."""

    def __init__(self, prompts: dict[int, Tensor]) -> None:
        """`prompts`: block -> (B,L,D), or (1,L,D) for every image alike; the first half are keys, the second values."""
        self.prompts = prompts

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if block not in self.prompts:
            return keys, values
        added = self.prompts[block].to(keys.dtype).expand(len(keys), -1, -1).chunk(2, dim=1)
        return torch.cat([added[0], keys], dim=1), torch.cat([added[1], values], dim=1)


class Behind(Sites):
    """Tokens behind those that enter the first block."""

    def __init__(self, tokens: Tensor) -> None:
        """`tokens`: (B,L,D)."""
        self.tokens = tokens

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        return torch.cat([tokens, self.tokens.to(tokens.dtype)], dim=1) if block == 0 else tokens


class Progress(nn.Module):
    """Which experience is being learned and which have been begun, kept with the learner's weights."""

    index: Tensor
    begun: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(0))
        self.register_buffer("begun", torch.zeros(count, dtype=torch.bool))

    def begin(self, index: int) -> None:
        """Go on to the experience `index`."""
        self.index.fill_(index)
        self.begun[index] = True

    @property
    def current(self) -> int:
        """The experience that is being learned, or was last."""
        return int(self.index)

    def told(self, batch: Batch) -> Tensor | None:
        """(B,) the experience of every image where it is no secret: in training, and where the protocol reveals it."""
        if self.training:
            return self.index.expand(len(batch))
        return None if batch.task is None else torch.full_like(self.index, batch.task).expand(len(batch))


class PerExperience(nn.Module):
    """A parameter of which each experience has its own."""

    def __init__(self, initial: Tensor) -> None:
        """`initial`: (T,...), one for each of T experiences."""
        super().__init__()
        self.each = nn.ParameterList(initial.unbind())

    def forward(self, current: int) -> Tensor:
        """(T,...) all of them, of which only that of `current` gets a gradient: a gradient of zero moves a weight, too,
        where the optimizer has momentum or decay."""
        return torch.stack([own if i == current else own.detach() for i, own in enumerate(self.each)])


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(B,D) and (M,D) -> (B,M), in float32 whatever the tower computes in."""
    with torch.autocast(queries.device.type, enabled=False):
        return nn.functional.normalize(queries, dim=1) @ nn.functional.normalize(keys, dim=1).T


def blocks_of(tower: Tower, asked: int | None, twelfths: int) -> int:
    """Blocks asked for; where no number is given, so many twelfths of the tower, as the papers' has twelve."""
    return -(-tower.depth * twelfths // 12) if asked is None else asked


def check_depth(tower: Tower, needed: int, what: str) -> None:
    """Raises RequestError if the tower has fewer blocks than `what` needs, or is no transformer."""
    require_blocks(tower)
    if needed > tower.depth:
        raise RequestError(f"{what} take {needed} blocks; the tower has {tower.depth}")


def centres(features: Tensor, count: int, seed: int) -> Tensor:
    """(N,D) -> (count,D) k-means centres in float32; fewer where there are fewer distinct features."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = features.double().cpu().numpy()
    groups = min(count, len(np.unique(rows, axis=0)))
    with threadpool_limits(limits=1):  # threads add their sums in any order, and a resumed run must find the same
        found = KMeans(groups, n_init=1, random_state=seed % 2**32).fit(rows)
    return torch.from_numpy(found.cluster_centers_).float().to(features.device)
