"""An adapter more for each experience, next to the earlier ones, and one head."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, Batch, ExperienceInfo, Outputs, Strategy, StreamInfo
from clsim.parts.heads import LinearHead


class Adapters(nn.Module):
    """The frozen tower's features, to which each adapter adds its own change."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList()
        self.head = LinearHead(width, num_classes)

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features + sum(adapter(batch.known_features) for adapter in self.adapters)
        return Outputs(self.head(features), features)


@dataclass(kw_only=True)
class GrowingAdapters(Strategy):
    """An adapter for each experience; the earlier ones are frozen, and the head goes on learning."""

    hidden: int = 8  # width of an adapter's hidden layer

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Adapters(backbone.image.out_dim, info.num_classes)

    def begin(self, learner: Adapters, experience: ExperienceInfo) -> None:  # what learns is chosen here
        width = learner.head.in_features
        adapter = nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, width))
        learner.adapters.requires_grad_(False).append(adapter)
