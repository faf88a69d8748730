"""Learning to Prompt (Wang et al. 2022, arXiv:2112.08654)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clsim import State, Strategy
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.prompts import PromptPool, majority, nearest


class PromptedTower(nn.Module):
    """A frozen tower that reads an image behind the prompts that the image chose; the head reads the prompts."""

    def __init__(self, tower: nn.Module, num_classes: int, how: "L2P") -> None:
        super().__init__()
        low, high = (-1.0, 1.0) if how.init == "unit" else (0.0, 0.01)
        self.tower = tower
        self.how = how
        self.pool = PromptPool(how.pool_size, how.prompt_length, tower.width, low, high)
        self.head = LinearHead(tower.width, num_classes)
        # usage in the experiences before this one, and in this one
        self.register_buffer("used_before", torch.zeros(how.pool_size, dtype=torch.int64))
        self.register_buffer("used", torch.zeros(how.pool_size, dtype=torch.int64))
        self.match: Tensor | None = None  # (B,N) cosines of the chosen keys, in the last forward pass

    def forward(self, batch: Batch) -> Tensor:
        chosen = self.choose(self.query(batch))
        prompts = self.pool.take(chosen)
        if self.how.order == "cls_prompts_patches":
            prompts = prompts + self.tower.first_position
        tokens = self.tower.embed(batch.images)
        # attention does not know the order of its tokens: where the prompts stand is for us to choose
        tokens = torch.cat([prompts.to(tokens.dtype), tokens], dim=1)
        outputs = self.tower.encode(tokens, read=slice(0, prompts.shape[1]))
        return self.head(outputs.float().mean(dim=1))

    def query(self, batch: Batch) -> Tensor:
        """(B,D) pooled features of the frozen tower without prompts."""
        if self.how.query == "clean" or not self.training:
            return batch.features
        with torch.no_grad():
            return self.tower(batch.images).float()

    def choose(self, query: Tensor) -> Tensor:
        """(B,D) queries -> (B,N) prompt ids; keeps the cosines of the chosen keys for the loss."""
        with torch.autocast(query.device.type, enabled=False):
            similarity = self.pool.similarity(query)
        ranking = similarity.detach()
        if self.training and self.how.diversity:
            # section 4.1: distance times usage in earlier experiences; one is added to each count, so that the
            # first experience is not decided by ties, nor the others by prompts never used
            frequency = (self.used_before + 1) / (self.used_before + 1).sum()
            ranking = -(1 - ranking) * frequency
        chosen = nearest(ranking, self.how.top_k)
        if (self.how.selection_train if self.training else self.how.selection_test) == "batch":
            chosen = majority(chosen, self.how.pool_size)
        if self.training:
            self.used += chosen.flatten().bincount(minlength=self.how.pool_size)
        self.match = similarity.gather(1, chosen)
        return chosen


@dataclass(kw_only=True)
class L2P(Strategy):
    """Learning to Prompt: a pool of prompts, chosen by the image. Wang et al. 2022, arXiv:2112.08654.

    The default is the paper's setting with the query taken from the clean image. Published code takes it from the
    augmented one and lets a batch vote on its prompts, in evaluation too, where that leaks the task; presets
    `official` and `port` follow that code except for the vote in evaluation (`selection_test=batch` asks for it).
    """

    pool_size: int = 10  # prompts in the pool; 1 with top_k=1 is the control without choice
    prompt_length: int = 5  # tokens of a prompt
    top_k: int = 5  # prompts chosen for an image
    pull: float = 0.5  # weight of the loss that pulls chosen keys to their queries
    lr_base: float = 0.06  # learning rate at a batch of 256 images; it scales with the batch. 0: take lr as it is
    mask: Literal["current", "seen", "all"] = "current"  # classes that the training loss tells apart
    query: Literal["clean", "augmented"] = "clean"  # the image that chooses in training
    selection_train: Literal["image", "batch"] = "image"  # who chooses in training: each image, or a vote of the batch
    selection_test: Literal["image", "batch"] = "image"  # the same in evaluation; batch lets test images see each other
    diversity: bool = False  # penalise prompts by their use in earlier experiences
    init: Literal["unit", "small"] = "unit"  # keys and prompts start in U(-1, 1), or in U(0, 0.01)
    order: Literal["prompts_cls_patches", "cls_prompts_patches"] = (
        "prompts_cls_patches"  # the second gives prompts the class token's position
    )
    normalise: bool = True  # pixels as the tower was trained on; no: in [0, 1], as in published code
    clip_grad: float = 1.0  # largest norm of the gradient; 0: no bound

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "clsim": {},
        "paper": {"batch_size": 128, "crop_min": 0.05, "normalise": False, "query": "augmented"},
        "official": {
            "batch_size": 128, "crop_min": 0.05, "normalise": False, "query": "augmented", "selection_train": "batch",
            "pool_size": 10, "top_k": 4, "prompt_length": 10, "pull": 1.0, "lr_base": 0.03, "init": "small",
        },
        "port": {
            "batch_size": 16, "crop_min": 0.05, "normalise": False, "query": "augmented", "selection_train": "batch",
            "pull": 0.1, "lr_base": 0.03, "order": "cls_prompts_patches",
        },
        "pool_of_1": {"pool_size": 1, "top_k": 1, "prompt_length": 25},
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "pool_size", "prompt_length", "top_k")
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k={self.top_k} prompts cannot be chosen from a pool of pool_size={self.pool_size}")
        self.at_least(0, "lr_base")

    def reads(self) -> set[str]:
        return {"images", "features"}

    def build(self, backbone: Any, info: Any) -> nn.Module:
        if not self.normalise:
            backbone.image.pixels = replace(backbone.image.pixels, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return PromptedTower(backbone.image, info.num_classes, self)

    @property
    def learning_rate(self) -> float:
        return self.lr_base * self.batch_size / 256 if self.lr_base > 0 else self.lr

    def loss(self, s: State) -> Tensor:
        # eq. 5 of the paper, with cosine similarity for its distance: only chosen keys move, and only by this term
        return super().loss(s) - self.pull * s.learner.match.sum(dim=1).mean()

    def caveats(self) -> list[str]:
        if self.selection_test == "batch":
            return ["selection_test=batch: a test image's prediction depends on the images beside it"]
        return []

    def after_training_exp(self, s: State) -> None:
        s.log("prompt_usage", s.learner.used.tolist())
        s.learner.used_before += s.learner.used
        s.learner.used.zero_()
