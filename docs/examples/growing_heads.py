"""A head more for each experience: the classifier grows while the earlier heads stay as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, Batch, ExperienceInfo, Strategy, StreamInfo


class Heads(nn.Module):
    """Linear heads on the frozen tower's features, one for the classes of each experience."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        # of each class, which output of the heads is its logit; -1, the column of zeros, before the class is learned
        self.register_buffer("columns", torch.full((num_classes,), -1))

    def forward(self, batch: Batch) -> Tensor:
        found = [head(batch.known_features) for head in self.heads]
        return torch.cat([*found, batch.known_features.new_zeros(len(batch), 1)], dim=1)[:, self.columns]


@dataclass(kw_only=True)
class GrowingHeads(Strategy):
    """A linear head for the classes of each experience; earlier heads are frozen."""

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        self.width = backbone.image.out_dim
        return Heads(info.num_classes)

    def begin(self, learner: Heads, experience: ExperienceInfo) -> None:  # called again when a run is resumed or loaded
        first, new = sum(head.out_features for head in learner.heads), len(experience.classes)
        learner.columns[list(experience.classes)] = torch.arange(first, first + new, device=learner.columns.device)
        learner.heads.requires_grad_(False).append(nn.Linear(self.width, new))
