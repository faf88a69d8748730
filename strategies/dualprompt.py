"""DualPrompt (Wang et al. 2022, arXiv:2204.04799)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import PromptPools
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import PerExperience, PoolOutputs, Prefixes, Progress, blocks_of, check_depth, cosines
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
        self.head = LinearHead(tower.out_dim, info.num_classes)

    def forward(self, batch: Batch) -> PoolOutputs:
        similarity = cosines(batch.known_features, self.keys(self.progress.current))
        known = self.progress.known_task(batch)
        chosen = self.nearest(similarity) if known is None else known
        match = similarity.gather(1, chosen[:, None])[:, 0]
        experts = self.experts(self.progress.current)[chosen]
        prompts = {i: prompt[None] for i, prompt in enumerate(self.general)}
        prompts |= {len(prompts) + i: experts[:, i] for i in range(experts.shape[1])}
        features = self.tower(batch.known_images, Prefixes(prompts))
        detected = self.progress.detected(batch, chosen)
        return PoolOutputs(self.head(features), features, detected, chosen=chosen, match=match)

    def nearest(self, similarity: Tensor) -> Tensor:
        """(B,T) cosines to the keys -> (B,) experts, among those that have been trained."""
        return similarity.masked_fill(~self.progress.mask, -torch.inf).argmax(dim=1)


@dataclass(kw_only=True)
class DualPrompt(PromptPools):
    """DualPrompt: general and expert prompts as prefixes to keys and values. Wang et al. 2022, arXiv:2204.04799.

    In training, and if the protocol reveals the task, each task uses its own expert; its key is pulled to the features
    of the task's clean images. Otherwise each image uses the expert with the nearest key. Experts of other tasks get no
    gradient. Rates and start values are those of the published code; its batch vote is left out.
    """

    general_blocks: int | None = None  # number of first blocks, with the general prompt; none: a sixth of all
    expert_blocks: int | None = None  # number of next blocks, with the expert's prompt; none: a quarter of all
    general_length: int = 6  # tokens of the general prompt in a block: half keys, half values
    expert_length: int = 20  # tokens of an expert's prompt in a block: half keys, half values
    pull: float = 1.0  # weight of the loss that pulls a task's key to its queries
    lr_base: float = 0.03
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "general_blocks", "expert_blocks")
        self.at_least(0, "pull")
        for name in ("general_length", "expert_length"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(f"{name} must be even and at least 2, not {getattr(self, name)}")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return DualPrompted(backbone.image, info, self)

    def loss(self, s: Step) -> Tensor:
        # section 4.3; replayed images are left out, because they belong to other tasks than the key
        stream = len(s.batch) - s.batch.replayed
        return super().loss(s) - self.pull * s.outputs_as(PoolOutputs).match[:stream].mean()
