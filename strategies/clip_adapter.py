"""CLIP-Adapter (Gao et al. 2024, arXiv:2110.04544)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, Outputs, StreamInfo
from clsim.bases import TextPrompts
from clsim.data.batches import Batch
from clsim.parts.text import TextHead, TrainingStarted, class_features, require_places


class AdaptedImages(nn.Module):
    """Image features from the bank, mixed with those of a small network; classified by class texts.

    Until training starts, the features are CLIP's own.
    """

    def __init__(self, head: TextHead, width: int, hidden: int, share: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.head = head
        self.share = share
        self.started = TrainingStarted()

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        if self.started():
            with torch.autocast(features.device.type, enabled=False):
                features = self.share * self.adapted(features.float()) + (1 - self.share) * features.float()
        return Outputs(self.head(features), features)

    def adapted(self, features: Tensor) -> Tensor:
        """(B,E) -> (B,E), not negative."""
        return self.up(self.down(features).relu()).relu()  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class ClipAdapter(TextPrompts):
    """A bottleneck on CLIP's image features, added to them; class texts are frozen. Gao et al. 2024, arXiv:2110.04544.

    Eq. 5 with alpha = `share`, and no adapter on the text (as in the published code). The recipe is CoOp's, as there:
    SGD with 200 epochs; the paper has Adam, 1e-5 and batches of 32.
    """

    reduction: int = 4  # width of a feature divided by the width of the bottleneck
    share: float = 0.2  # of the bottleneck's output in the mixture
    templates: tuple[str, ...] = (
        "a photo of a {}.",
    )  # texts with {} for the class name; features of several texts are averaged
    epochs: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "reduction")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")
        require_places(self.templates)

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        text = backbone.text_tower
        head = TextHead(class_features(text, info.class_names, self.templates), text.logit_scale)
        width = backbone.image.out_dim
        return AdaptedImages(head, width, max(1, width // self.reduction), self.share)
