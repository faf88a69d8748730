"""KgCoOp: knowledge-guided context optimisation (Yao et al. 2023, arXiv:2303.13283)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from clsim import Backbone, Outputs, Step, StreamInfo
from clsim.data.batches import Batch
from clsim.parts.text import TEMPLATE, Kept, class_features, cosine_logits, require_places
from clsim.strategies.coop import ContextClasses, CoOp


@dataclass(frozen=True)
class GuidedOutputs(Outputs):
    """Outputs with the distances of the class features from CLIP's own."""

    distances: Tensor | None = None  # (B,K), the same for every image: processes may divide the batch


class Guided(nn.Module):
    """Image features from the bank, classified by class names in a learned context; CLIP's own class features."""

    known: Tensor

    def __init__(self, texts: ContextClasses, known: Tensor, scale: float) -> None:
        """`known`: (K,E) features of the template."""
        super().__init__()
        self.texts = texts
        self.scale = scale
        self.kept = Kept()
        self.register_buffer("known", known, persistent=False)

    def forward(self, batch: Batch) -> GuidedOutputs:
        features = batch.known_features
        classes = self.kept(self.texts, self.texts)
        distances = 1 - cosine_similarity(classes.float(), self.known, dim=1)
        logits = cosine_logits(features, classes, self.scale)
        return GuidedOutputs(logits, features, distances=distances.expand(len(features), -1))


@dataclass(kw_only=True)
class KgCoOp(CoOp):
    """CoOp with a pull of the learned class features towards those of CLIP's template. Yao et al. 2023.

    arXiv:2303.13283, eq. 5, in the form of the published code: the mean of 1 - cosine over the classes, here over those
    seen so far. The squared distance in the paper is twice that.
    """

    context_length: int = 4  # learned vectors
    init: str = "a photo of a"  # words to start from, with as many tokens as vectors; empty: random
    pull: float = 8.0  # weight of the distance from CLIP's class features
    template: str = TEMPLATE  # the text of these features, with {} for the class name
    epochs: int = 100
    batch_size: int = 128

    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "pull")
        require_places((self.template,))

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | ({} if self.pull else {"template": "pull=0"})

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        text = backbone.text_tower
        known = class_features(text, info.class_names, (self.template,))
        return Guided(ContextClasses(text, info.class_names, self), known, text.logit_scale)

    def loss(self, s: Step) -> Tensor:
        loss = super().loss(s)
        distances = s.outputs_as(GuidedOutputs).distances
        if distances is None or not self.pull:
            return loss
        seen = s.class_mask(s.seen)
        return loss + self.pull * (distances.mean(dim=0) * seen).sum() / seen.sum()
