"""CODA-Prompt (Smith et al. 2023, arXiv:2211.13218)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, ExperienceInfo, Outputs, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import KeyedPools
from clsim.data.batches import Batch
from clsim.errors import RequestError
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import (
    PerExperience,
    Prefixes,
    Progress,
    blocks_of,
    check_depth,
    gram_schmidt,
    off_orthonormal,
    orthonormal,
    query_features,
)
from clsim.parts.tuners import key_width
from clsim.strategy import Schedule


class CodaPrompted(nn.Module):
    """A frozen tower; its first blocks get a prompt that is composed for each image."""

    def __init__(self, tower: Tower, info: StreamInfo, how: "CodaPrompt") -> None:
        super().__init__()
        blocks = blocks_of(tower, how.blocks, 5)
        check_depth(tower, blocks, f"blocks={blocks}")
        count = info.num_experiences * how.components
        if how.start == "each" and count > tower.out_dim:
            raise RequestError(
                f"start=each draws {count} vectors of {tower.out_dim} features, more than can be orthogonal"
            )
        self.how = how
        groups = (info.num_experiences, blocks, how.components)
        self.tower = tower
        self.progress = Progress(info.num_experiences)
        self.keys = PerExperience(orthonormal(*groups, tower.out_dim))
        self.attention = PerExperience(orthonormal(*groups, tower.out_dim))
        shape = (how.prompt_length, key_width(tower))
        self.prompts = PerExperience(orthonormal(*groups, math.prod(shape)).unflatten(-1, shape))
        self.head = LinearHead(tower.out_dim, info.num_classes, start=how.head_init)

    def forward(self, batch: Batch) -> Outputs:
        query = query_features(self.tower, batch, clean=self.how.query == "clean" or not self.training)
        features = self.tower(batch.known_images, Prefixes(self.compose(query)))
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

    def restart(self) -> None:
        """Draw the current experience's vectors again, each orthogonal to the trained ones of earlier experiences."""
        now = self.progress.current
        for owned in (self.prompts, self.keys, self.attention):
            for block, rows in enumerate(owned.each[now].data):
                before = [owned.each[i].data[block].flatten(1) for i in self.progress.begun if i != now]
                drawn = gram_schmidt(torch.cat([*before, rows.new_empty(0, rows[0].numel())]), len(rows))
                rows.copy_(drawn.view_as(rows))

    def penalty(self) -> Tensor:
        """The deviation of components, keys and attention vectors from orthonormal, summed over blocks."""
        owned = [self.begun(each) for each in (self.prompts, self.keys, self.attention)]
        return torch.stack([off_orthonormal(rows.flatten(1)) for each in owned for rows in each]).sum()


@dataclass(kw_only=True)
class CodaPrompt(KeyedPools):
    """CODA-Prompt: prompts composed of weighted components for each image. Smith et al. 2023, arXiv:2211.13218.

    Each experience has its own components, keys and attention vectors; those of other experiences get no gradient. The
    prompt is a prefix to keys and values. The default follows the paper, with queries of clean images. Preset `release`
    is the authors' code (GT-RIPL/CODA-Prompt) for Split CIFAR-100, of which it has the numbers for ten experiences;
    docs/differences.md has what remains.
    """

    components: int = 10  # number of components for each experience
    prompt_length: int = 8  # tokens of a component: half keys, half values
    blocks: int | None = None  # number of first blocks that get a prompt; none: five twelfths of the tower's blocks
    start: Literal["together", "each"] = (
        "together"  # vectors are drawn orthonormal at once, or an experience's when it begins (authors' code)
    )
    ortho: float = 0.1  # weight of the penalty that keeps components, keys and attention vectors orthonormal
    schedule: Schedule = "cosine"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "clsim": {},
        "release": {
            "epochs": 20, "batch_size": 128, "drop_last": True, "schedule": "quarter_cosine", "query": "augmented",
            "start": "each", "ortho": 0.0, "transforms": "torchvision", "crop_min": 0.08, "interpolation": "bilinear",
            "test_crop": 1.0, "normalise": False,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "components", "blocks")
        if self.prompt_length < 2 or self.prompt_length % 2:
            raise ValueError(f"prompt_length must be even and at least 2, not {self.prompt_length}")
        self.at_least(0, "ortho")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return CodaPrompted(backbone.image, info, self)

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        super().begin(learner, experience)
        assert isinstance(learner, CodaPrompted)
        if self.start == "each":
            learner.restart()

    def loss(self, s: Step) -> Tensor:
        return super().loss(s) + self.ortho * s.learner_as(CodaPrompted).penalty()
