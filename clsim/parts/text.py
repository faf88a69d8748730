"""Classes as texts: their features, and the classifier that they make."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim.backbones.clip import TextTower

TEMPLATE = "a photo of a {}."


def readable(name: str) -> str:
    """A class or domain name as it stands in a prompt: ``art_painting`` -> ``art painting``."""
    return name.replace("_", " ")


@torch.no_grad()
def class_features(tower: TextTower, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K,E) unit features of the classes: of each template the normalised feature, averaged and normalised again.

    Radford et al. 2021, arXiv:2103.00020, section 3.1.4. A template holds ``{}`` where the name goes.
    """
    texts = [template.format(readable(name)) for name in class_names for template in templates]
    features = torch.cat([normalize(tower(texts[i : i + 256]).float(), dim=1) for i in range(0, len(texts), 256)])
    return normalize(features.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=1)


class TextHead(nn.Module):
    """Cosine of an image to each class's text, times CLIP's scale."""

    classes: Tensor

    def __init__(self, classes: Tensor, scale: float) -> None:
        """`classes` are (K,E) unit features."""
        super().__init__()
        self.register_buffer("classes", classes)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B,E) image features -> (B,K) logits."""
        return cosine_logits(features, self.classes, self.scale)


class Begun(nn.Module):
    """Whether training has begun. Until then learned words are left aside, and classification is zero-shot.

    So the row before any training of a run with text is zero-shot CLIP, whatever the words start from.
    """

    flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.tensor(False))

    def forward(self) -> bool:
        """Yes, from the first time this is asked in training."""
        if self.training:
            self.flag.fill_(True)
            return True
        return bool(self.flag)


def cosine_logits(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """(B,E) image features, (K,E) class features -> (B,K) cosines times `scale`, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return scale * normalize(features.float(), dim=1) @ normalize(classes.float(), dim=1).T
