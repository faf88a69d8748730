"""Nearest class mean: SimpleCIL (Zhou et al. 2023, arXiv:2303.07338)."""

from dataclasses import dataclass

from torch import nn

from clsim import Backbone, Outputs, State, Strategy, StreamInfo
from clsim.data.batches import Batch
from clsim.parts.heads import PrototypeHead


class NearestMean(nn.Module):
    """Class means (prototypes) of features from the bank."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = PrototypeHead(width, num_classes)

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        return Outputs(self.head(features), features)


@dataclass(kw_only=True)
class Ncm(Strategy):
    """Nearest class mean: cosine to each class's mean feature; no training."""

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return NearestMean(backbone.image.out_dim, info.num_classes)

    def fit(self, s: State) -> None:
        head = s.learner_as(NearestMean).head
        for batch in s.clean_batches():
            head.add(batch.known_features, batch.known_labels)
