"""Tune in the first experience, then only compute class means: `epochs_for` and `fit` in one strategy."""

from dataclasses import dataclass

from torch import Tensor, nn

from clsim import Backbone, Batch, ExperienceInfo, State, Strategy, StreamInfo
from clsim.parts.heads import LinearHead, PrototypeHead


class Tuned(nn.Module):
    """A layer that adapts the tower's features; a head to train it with, and class means to classify by."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.adapter = nn.Linear(width, width)
        self.head, self.means = LinearHead(width, num_classes), PrototypeHead(width, num_classes)

    def forward(self, batch: Batch) -> Tensor:
        return (self.head if self.training else self.means)(self.adapter(batch.known_features))


@dataclass(kw_only=True)
class FirstSession(Strategy):
    """A layer learned in the first experience, and the mean of its features for each class of every experience."""

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Tuned(backbone.image.out_dim, info.num_classes)

    def epochs_for(self, experience: ExperienceInfo) -> int:
        return self.epochs if experience.index == 0 else 0

    def fit(self, s: State) -> None:  # after the epochs, in evaluation mode and without gradients
        learner = s.learner_as(Tuned)
        for batch in s.clean_batches():
            learner.means.add(learner.adapter(batch.known_features), batch.known_labels)
