"""Zero-shot classification with CLIP (Radford et al. 2021, arXiv:2103.00020)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clsim import Backbone, Outputs, State, Strategy, StreamInfo
from clsim.data.batches import Batch
from clsim.parts.text import TextHead, class_features, require_places


class FrozenClip(nn.Module):
    """Image features from the bank, classified by class texts."""

    def __init__(self, head: TextHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        return Outputs(self.head(features), features)


@dataclass(kw_only=True)
class ZeroShot(Strategy):
    """Zero-shot CLIP: cosine to the classes' texts; no training. Radford et al. 2021, arXiv:2103.00020."""

    templates: tuple[str, ...] = (
        "a photo of a {}.",
    )  # texts with {} for the class name; features of several texts are averaged

    needs_text: ClassVar[bool] = True
    scores_unseen: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # with words of clip_micro's training captions, also for domains
        "ensemble": {
            "templates": (
                "a photo of a {}.", "a sketch of a {}.", "a painting of a {}.", "a clipart of a {}.",
                "an image of a {}", "a picture of a {}.", "{}.",
            ),
        },
        # the seven templates that the authors' notebook selects for ImageNet
        "clip7": {
            "templates": (
                "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
                "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
            ),
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require_places(self.templates)

    def reads(self) -> set[str]:
        return {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        text = backbone.text_tower
        classes = class_features(text, info.class_names, self.templates)
        return FrozenClip(TextHead(classes, text.logit_scale))

    def fit(self, s: State) -> None:
        """Nothing is learned."""
