"""Learning only from the source."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from clsim import Backbone, Strategy, StreamInfo
from clsim.parts.adaptation import features_of, inputs_for
from clsim.parts.heads import LinearHead
from clsim.parts.learners import Headed


@dataclass(kw_only=True)
class SourceOnly(Strategy):
    """Source only: a linear head trained on the labelled source; the baseline for adaptation."""

    epochs: int = 20  # passes over the source
    tune: Literal["head", "all"] = "head"  # what learns: a head on the frozen tower (head), or the tower, too (all)

    def reads(self) -> set[str]:
        return inputs_for(self.tune)

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return Headed(features_of(backbone, self.tune), LinearHead(backbone.image.out_dim, info.num_classes))
