"""CoCoOp: conditional context optimisation (Zhou et al. 2022, arXiv:2203.05557)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, Outputs, StreamInfo
from clsim.backbones.clip import TextTower
from clsim.bases import TextPrompts
from clsim.data.batches import Batch
from clsim.parts.text import TEMPLATE, TextHead, TrainingStarted, class_features
from clsim.parts.text_prompts import PromptedText, Wording, new_context

AT_ONCE = 32  # images that are evaluated together: each has a text for every class


class ConditionalClassifier(nn.Module):
    """Image features from the bank, classified by class names in a context that is shifted for each image.

    Until training starts, the class names are in the plain template.
    """

    def __init__(self, text: TextTower, class_names: tuple[str, ...], how: "CoCoOp") -> None:
        super().__init__()
        self.prompted = PromptedText(text, Wording.of(text, class_names, how.context_length))
        self.context = new_context(text, how.context_length, how.init)
        hidden = max(1, text.out_dim // how.reduction)
        self.meta_net = nn.Sequential(nn.Linear(text.out_dim, hidden), nn.ReLU(), nn.Linear(hidden, text.width))
        self.scale = text.logit_scale
        self.started = TrainingStarted()
        self.plain = TextHead(class_features(text, class_names, (TEMPLATE,)), text.logit_scale)

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        if not self.started():
            return Outputs(self.plain(features), features)
        parts = [features] if self.training else features.split(AT_ONCE)
        return Outputs(torch.cat([self.scores(part) for part in parts]), features)

    def scores(self, features: Tensor) -> Tensor:
        """(B,E) image features -> (B,K) logits in the learned context."""
        images = normalize(features.float(), dim=1)
        with torch.autocast(images.device.type, enabled=False):
            shift = self.meta_net(images)  # eq. 4 of the paper: the same for every vector
        classes = self.prompted(self.context + shift[:, None])  # (B,K,E)
        with torch.autocast(images.device.type, enabled=False):
            cosines: Tensor = (normalize(classes.float(), dim=2) @ images[..., None])[..., 0]
            logits: Tensor = self.scale * cosines
            return logits


@dataclass(kw_only=True)
class CoCoOp(TextPrompts):
    """Conditional context optimisation: learned words that depend on the image. Zhou et al. 2022, arXiv:2203.05557.

    Every image has its own texts, so the cost grows with images times classes. The paper trains 10 epochs with one
    image per step; here a larger batch gives exactly the same result for each image.
    """

    context_length: int = 4  # learned vectors
    init: str = "a photo of a"  # words to start from, with as many tokens as vectors; empty: random
    reduction: int = 16  # width of a feature divided by the width of the Meta-Net's hidden layer
    epochs: int = 10
    batch_size: int = 1

    presets: ClassVar[dict[str, dict[str, Any]]] = {"batch_of_32": {"batch_size": 32, "lr": 1e-2}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "context_length", "reduction")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return ConditionalClassifier(backbone.text_tower, info.class_names, self)
