"""DualPrompt (Wang et al. 2022, arXiv:2204.04799)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clsim import Backbone, ExperienceInfo, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import KeyedPools
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import (
    PerExperience,
    PoolOutputs,
    Prefixes,
    Progress,
    blocks_of,
    check_depth,
    cosines,
    query_features,
)
from clsim.parts.tuners import key_width


class DualPrompted(nn.Module):
    """A frozen tower with a general prompt in its first blocks and one task's expert prompt in the next blocks."""

    def __init__(self, tower: Tower, info: StreamInfo, how: "DualPrompt") -> None:
        super().__init__()
        general, expert = blocks_of(tower, how.general_blocks, 2), blocks_of(tower, how.expert_blocks, 3)
        check_depth(tower, general + expert, f"general_blocks={general} and expert_blocks={expert}")
        count, width = info.num_experiences, key_width(tower)
        self.tower = tower
        self.progress = Progress(count)
        self.general = nn.Parameter(torch.empty(general, how.general_length, width).uniform_(0, 0.01))
        self.experts = PerExperience(torch.empty(count, expert, how.expert_length, width).uniform_(0, 0.01))
        self.keys = PerExperience(torch.empty(count, tower.out_dim).uniform_(0, 0.01))
        self.head = LinearHead(tower.out_dim, info.num_classes, start=how.head_init)
        self.how = how

    def forward(self, batch: Batch) -> PoolOutputs:
        query = query_features(self.tower, batch, clean=self.how.query == "clean" or not self.training)
        similarity = cosines(query, self.keys(self.progress.current))
        known = self.progress.known_task(batch)
        chosen = self.nearest(similarity) if known is None else known
        match = similarity.gather(1, chosen[:, None])[:, 0]
        experts = self.experts(self.progress.current)[chosen]
        prompts = {i: prompt[None] for i, prompt in enumerate(self.general)}
        prompts |= {len(prompts) + i: experts[:, i] for i in range(experts.shape[1])}
        features = self.tower(batch.known_images, Prefixes(prompts))
        detected = self.progress.detected(batch, chosen)
        return PoolOutputs(self.head(features), features, detected, chosen=chosen, match=match)

    def hand_down(self, former: int) -> None:
        """Let the current task's expert start from that of the task `former`; its key keeps its own start."""
        with torch.no_grad():
            self.experts.each[self.progress.current].copy_(self.experts.each[former])

    def nearest(self, similarity: Tensor) -> Tensor:
        """(B,T) cosines to the keys -> (B,) experts, among those that have been trained."""
        return similarity.masked_fill(~self.progress.mask, -torch.inf).argmax(dim=1)


@dataclass(kw_only=True)
class DualPrompt(KeyedPools):
    """DualPrompt: general and expert prompts as prefixes to keys and values. Wang et al. 2022, arXiv:2204.04799.

    In training, and if the protocol reveals the task, each task uses its own expert; its key is pulled to the features
    of the task's images. Otherwise each image uses the expert with the nearest key. Experts of other tasks get no
    gradient.

    The default has the rate and the start values of the authors' code (google-research/l2p), but the lengths that
    CODA-Prompt's code gives to DualPrompt, queries of clean images, and an expert with its own start in each task.
    Presets `official` and `official_imagenet_r` are the authors' code for Split CIFAR-100 and ImageNet-R, with 24
    images on each of 8 devices: an expert starts from the former task's. They take classes in the data set's order
    (`scenario.order_seed=-1`). The batch's vote in evaluation is left out. docs/differences.md has what remains.
    """

    general_blocks: int | None = None  # number of first blocks, with the general prompt; none: a sixth of all
    expert_blocks: int | None = None  # number of next blocks, with the expert's prompt; none: a quarter of all
    general_length: int = 6  # tokens of the general prompt in a block: half keys, half values
    expert_length: int = 20  # tokens of an expert's prompt in a block: half keys, half values
    start: Literal["random", "former"] = "random"  # an expert's start: its own random values, or the former expert
    pull: float = 1.0  # weight of the loss that pulls a task's key to its queries
    lr_base: float = 0.03
    clip_grad: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "clsim": {},
        "official": {
            "general_length": 10, "expert_length": 10, "batch_size": 192, "start": "former", "query": "augmented",
            "drop_last": True, "transforms": "tensorflow", "crop_min": 0.05, "interpolation": "bilinear",
            "normalise": False, "head_init": "zero", "clip_over": "all", "test_classes": "all",
        },
        "official_imagenet_r": {
            "general_length": 10, "expert_length": 40, "epochs": 50, "lr_base": 0.005,
            "batch_size": 192, "start": "former", "query": "augmented",
            "drop_last": True, "transforms": "tensorflow", "crop_min": 0.05, "interpolation": "bilinear",
            "normalise": False, "head_init": "zero", "clip_over": "all", "test_classes": "all",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "general_blocks", "expert_blocks")
        self.at_least(0, "pull")
        for name in ("general_length", "expert_length"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(f"{name} must be even and at least 2, not {getattr(self, name)}")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return DualPrompted(backbone.image, info, self)

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        assert isinstance(learner, DualPrompted)
        former = learner.progress.current if learner.progress.begun else experience.index
        super().begin(learner, experience)
        if self.start == "former":
            learner.hand_down(former)

    def loss(self, s: Step) -> Tensor:
        # section 4.3; replayed images are left out, because they belong to other tasks than the key
        stream = len(s.batch) - s.batch.replayed
        return super().loss(s) - self.pull * s.outputs_as(PoolOutputs).match[:stream].mean()
