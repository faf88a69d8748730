"""Tip-Adapter-F: Tip-Adapter whose keys learn (Zhang et al. 2022, arXiv:2111.03930)."""

from dataclasses import dataclass

import torch
from torch import nn

from clsim import Backbone, ExperienceInfo, State, StreamInfo
from clsim.strategies.tip_adapter import KeyCache, TipAdapter
from clsim.strategy import Optimizer, Schedule


@dataclass(kw_only=True)
class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are trained from where it has them, on the images of each experience. Zhang et al. 2022.

    arXiv:2111.03930, section 3.2, with AdamW (epsilon 1e-4) as in the published code. That code keeps the epoch with
    the best test accuracy; here the last one counts.
    """

    epochs: int = 20
    batch_size: int = 256
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    weight_decay: float = 0.01

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        cache = super().build(backbone, info)
        assert isinstance(cache, KeyCache)
        keys = cache.keys
        del cache.keys
        cache.keys = nn.Parameter(keys)
        return cache

    def unused(self, info: StreamInfo) -> dict[str, str]:
        found = super().unused(info)  # before the search, alpha and beta are those of training
        return {name: why for name, why in found.items() if name not in ("alpha", "beta")}

    def epochs_for(self, experience: ExperienceInfo) -> int:
        return self.epochs

    def before_training_exp(self, s: State) -> None:
        self.add_keys(s)
        s.learner_as(KeyCache).factors.copy_(torch.tensor([self.alpha, self.beta]))

    def fit(self, s: State) -> None:
        self.choose(s)

    def configure_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizer(learner)
        for group in optimizer.param_groups:
            if "eps" in group:  # sgd has none
                group["eps"] = 1e-4
        return optimizer
