"""CODA-Prompt (Smith et al. 2023, arXiv:2211.13218)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, Outputs, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import PromptPools
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import PerExperience, Prefixes, Progress, blocks_of, check_depth
from clsim.parts.tuners import key_width
from clsim.strategy import Schedule


class CodaPrompted(nn.Module):
    """A frozen tower; its first blocks get a prompt that is composed for each image."""

    def __init__(self, tower: Tower, info: StreamInfo, how: "CodaPrompt") -> None:
        super().__init__()
        blocks = blocks_of(tower, how.blocks, 5)
        check_depth(tower, blocks, f"blocks={blocks}")
        groups = (info.num_experiences, blocks, how.components)
        self.tower = tower
        self.progress = Progress(info.num_experiences)
        self.keys = PerExperience(orthonormal(*groups, tower.out_dim))
        self.attention = PerExperience(orthonormal(*groups, tower.out_dim))
        shape = (how.prompt_length, key_width(tower))
        self.prompts = PerExperience(orthonormal(*groups, math.prod(shape)).unflatten(-1, shape))
        self.head = LinearHead(tower.out_dim, info.num_classes)

    def forward(self, batch: Batch) -> Outputs:
        features = self.tower(batch.known_images, Prefixes(self.compose(batch.known_features)))
        return Outputs(self.head(features), features)

    def compose(self, queries: Tensor) -> dict[int, Tensor]:
        """(B,E) queries -> block -> (B,L,D) prompt: the sum of components, weighted for each image."""
        with torch.autocast(queries.device.type, enabled=False):
            every = zip(self.weights(queries), self.begun(self.prompts), strict=True)
            return {i: torch.einsum("bm,mld->bld", weights, prompts) for i, (weights, prompts) in enumerate(every)}

    def weights(self, queries: Tensor) -> list[Tensor]:
        """(B,E) queries -> (B,M) cosines for each block, between the attended query and the keys. Section 4.2."""
        every = zip(self.begun(self.attention), self.begun(self.keys), strict=True)
        return [
            torch.einsum("bme,me->bm", normalize(queries[:, None] * attention, dim=2), normalize(keys, dim=1))
            for attention, keys in every
        ]

    def begun(self, owned: PerExperience) -> Tensor:
        """(blocks,M,...) parameters of the experiences begun so far; before the first one, those of the first."""
        progress = self.progress
        every: Tensor = owned(progress.current)
        begun: Tensor = torch.stack([every[i] for i in progress.begun or (progress.current,)], dim=1)
        return begun.flatten(1, 2)

    def penalty(self) -> Tensor:
        """The deviation of components, keys and attention vectors from orthonormal, summed over blocks."""
        owned = [self.begun(each) for each in (self.prompts, self.keys, self.attention)]
        return torch.stack([off_orthonormal(rows.flatten(1)) for each in owned for rows in each]).sum()


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


@dataclass(kw_only=True)
class CodaPrompt(PromptPools):
    """CODA-Prompt: prompts composed of weighted components for each image. Smith et al. 2023, arXiv:2211.13218.

    Each experience has its own components, keys and attention vectors; those of other experiences get no gradient. The
    prompt is a prefix to keys and values.
    """

    components: int = 10  # number of components for each experience
    prompt_length: int = 8  # tokens of a component: half keys, half values
    blocks: int | None = None  # number of first blocks that get a prompt; none: five twelfths of the tower's blocks
    ortho: float = 0.1  # weight of the penalty that keeps components, keys and attention vectors orthonormal
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "components", "blocks")
        if self.prompt_length < 2 or self.prompt_length % 2:
            raise ValueError(f"prompt_length must be even and at least 2, not {self.prompt_length}")
        self.at_least(0, "ortho")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return CodaPrompted(backbone.image, info, self)

    def loss(self, s: Step) -> Tensor:
        return super().loss(s) + self.ortho * s.learner_as(CodaPrompted).penalty()
