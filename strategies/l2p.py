"""Learning to Prompt (Wang et al. 2022, arXiv:2112.08654)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clsim import Backbone, State, Step, StreamInfo
from clsim.backbones.towers import Tower
from clsim.bases import KeyedPools
from clsim.data.batches import Batch
from clsim.parallel import across, own
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import PoolOutputs, PromptPool, Ties, majority, query_features, votes


class PromptedTower(nn.Module):
    """A frozen tower that reads an image after the prompts selected for it; the head reads the prompts' outputs."""

    used_before: Tensor
    used: Tensor

    def __init__(self, tower: Tower, num_classes: int, how: "L2P") -> None:
        super().__init__()
        low, high = (-1.0, 1.0) if how.init == "unit" else (0.0, 0.01)
        self.tower = tower
        self.how = how
        self.pool = PromptPool(how.pool_size, how.prompt_length, tower.width, low, high)
        self.head = LinearHead(tower.width, num_classes, start=how.head_init)
        # how often training steps selected each prompt: in earlier experiences, and in this one
        self.register_buffer("used_before", torch.zeros(how.pool_size, dtype=torch.int64))
        self.register_buffer("used", torch.zeros(how.pool_size, dtype=torch.int64))

    def forward(self, batch: Batch) -> PoolOutputs:
        similarity = self.pool.similarity(self.query(batch))
        chosen = self.choose(similarity)
        prompts = self.pool.take(chosen)
        if self.how.order == "cls_prompts_patches":
            prompts = prompts + self.tower.first_position
        tokens = self.tower.embed(batch.known_images)
        # attention does not depend on the order of its tokens, so prompts may be at any position
        tokens = torch.cat([prompts.to(tokens.dtype), tokens], dim=1)
        outputs = self.tower.encode(tokens, read=slice(0, prompts.shape[1]))
        features = outputs.float().mean(dim=1)
        return PoolOutputs(self.head(features), features, chosen=chosen, match=similarity.gather(1, chosen))

    def query(self, batch: Batch) -> Tensor:
        """(B,D) pooled features of the frozen tower without prompts."""
        return query_features(self.tower, batch, clean=self.how.query == "clean" or not self.training)

    def choose(self, similarity: Tensor) -> Tensor:
        """(B,M) cosines to the keys -> (B,N) prompt ids."""
        ranking = similarity.detach()
        if self.training and self.how.diversity:
            # section 4.1: distance times usage in earlier experiences; with one added to each count, there are no ties
            # in the first experience, and unused prompts do not always win in later ones
            frequency = (self.used_before + 1) / (self.used_before + 1).sum()
            ranking = -(1 - ranking) * frequency
        chosen = ranking.topk(self.how.top_k, dim=1).indices
        if (self.how.selection_train if self.training else self.how.selection_test) == "image":
            return chosen
        everyone = across(chosen)
        voters = everyone.split(self.how.voters or len(everyone))
        return own(torch.cat([majority(each, self.how.pool_size, self.how.vote_ties) for each in voters]))


@dataclass(kw_only=True)
class L2P(KeyedPools):
    """Learning to Prompt: a pool of prompts; each image selects some of them. Wang et al. 2022, arXiv:2112.08654.

    The default is the paper's setting, with the query from the clean image. Published code takes it from the augmented
    image and selects prompts by a vote of the batch. It does so in evaluation, too, where this leaks the task. Presets
    `official` (google-research/l2p) and `port` (JH-LEE-KR/l2p-pytorch) are the code of their Split CIFAR-100, but
    without the vote in evaluation (`selection_test=batch` adds it). Add `scenario.order_seed=-1`: both take classes in
    the data set's order. docs/differences.md has what remains.
    """

    pool_size: int = 10  # prompts in the pool; 1 with top_k=1 is the control without selection
    prompt_length: int = 5  # tokens of a prompt
    top_k: int = 5  # prompts selected for an image
    pull: float = 0.5  # weight of the loss that pulls selected keys to their queries
    lr_base: float = 0.06
    selection_train: Literal["image", "batch"] = "image"  # selection in training: per image, or by the batch's vote
    selection_test: Literal["image", "batch"] = "image"  # in evaluation; batch: predictions depend on the batch
    voters: int = 0  # images that vote together, in the batch's order; 0: the whole batch
    vote_ties: Ties = "lowest"  # prompts with equally many votes: the lowest first, or in the order of torch.topk
    diversity: bool = False  # penalise prompts that earlier experiences used often
    init: Literal["unit", "small"] = "unit"  # keys and prompts start in U(-1, 1), or in U(0, 0.01)
    order: Literal["prompts_cls_patches", "cls_prompts_patches"] = (
        "prompts_cls_patches"  # cls_prompts_patches: prompts get the class token's position embedding
    )
    clip_grad: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "clsim": {},
        "paper": {"batch_size": 128, "crop_min": 0.05, "normalise": False, "query": "augmented"},
        "official": {
            "batch_size": 128, "crop_min": 0.05, "normalise": False, "query": "augmented", "selection_train": "batch",
            "pool_size": 10, "top_k": 4, "prompt_length": 10, "pull": 1.0, "lr_base": 0.03, "init": "small",
            "head_init": "zero", "clip_over": "all", "voters": 16, "test_classes": "all", "drop_last": True,
            "transforms": "tensorflow", "interpolation": "bilinear",
        },
        "port": {
            "batch_size": 16, "crop_min": 0.05, "normalise": False, "query": "augmented", "selection_train": "batch",
            "pull": 0.1, "lr_base": 0.03, "order": "cls_prompts_patches", "head_init": "normal", "vote_ties": "topk",
            "test_classes": "all", "transforms": "torchvision", "interpolation": "bicubic",
            "crop_interpolation": "bilinear",
        },
        "pool_of_1": {"pool_size": 1, "top_k": 1, "prompt_length": 25},
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "pool_size", "prompt_length", "top_k")
        self.at_least(0, "pull", "voters")
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k={self.top_k} prompts cannot be selected from a pool of pool_size={self.pool_size}")

    def unused(self, info: StreamInfo) -> dict[str, str]:
        why = "each image selects its prompts; selection_train=batch or selection_test=batch has votes"
        votes = "batch" in (self.selection_train, self.selection_test)
        return super().unused(info) | ({} if votes else dict.fromkeys(("voters", "vote_ties"), why))

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return PromptedTower(backbone.image, info.num_classes, self)

    def loss(self, s: Step) -> Tensor:
        # eq. 5 of the paper, with cosine similarity as distance: only this term trains keys, and only the selected ones
        return super().loss(s) - self.pull * s.outputs_as(PoolOutputs).match.sum(dim=1).mean()

    def after_forward(self, s: Step) -> None:
        s.learner_as(PromptedTower).used += votes(s.outputs_as(PoolOutputs).chosen, self.pool_size)

    def caveats(self) -> list[str]:
        text = "selection_test=batch: a test image's prediction depends on the images in its batch"
        return [text] if self.selection_test == "batch" else []

    def after_training_exp(self, s: State) -> None:
        learner = s.learner_as(PromptedTower)
        s.log("prompt_usage", learner.used.tolist())
        learner.used_before += learner.used
        learner.used.zero_()
