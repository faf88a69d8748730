"""Classes as texts: their features, and the classifier that they make."""

from collections.abc import Callable, Sequence

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


class TrainingStarted(nn.Module):
    """Whether training has started. Until then learned words are not used, and classification is zero-shot.

    So the row before any training of a run with text is zero-shot CLIP, whatever the words start from. `Strategy.begin`
    sets it, with `start_training`; it is not saved, since resuming and loading repeat `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started = False

    def forward(self) -> bool:
        """Whether it has."""
        return self.started


def start_training(learner: nn.Module) -> None:
    """Let every part of the learner know that training has started."""
    for module in learner.modules():
        if isinstance(module, TrainingStarted):
            module.started = True


class Kept(nn.Module):
    """The tensor that a module computes from its weights alone, computed again only when these have changed.

    For class features in evaluation. What is kept serves only while the very same tensors are in the same state
    (PyTorch counts the writes to each), in the same precision and without gradients. It is dropped whenever the learner
    changes its mode, as before every evaluation: the writes of a fused optimizer, and those to `.data`, are not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.state: list[object] = []
        self.value: Tensor | None = None

    def train(self, mode: bool = True) -> "Kept":
        """Drop what is kept."""
        self.tensors, self.state, self.value = [], [], None
        return super().train(mode)

    def forward(self, module: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """What `make()` returns, which depends on the module's weights alone."""
        if torch.is_grad_enabled() or module.training:
            return make()
        tensors = [*module.parameters(), *module.buffers()]
        state = _state(module, tensors)
        same = len(tensors) == len(self.tensors) and all(a is b for a, b in zip(tensors, self.tensors, strict=True))
        if self.value is None or not same or state != self.state:
            self.tensors, self.state, self.value = tensors, state, make()
        return self.value


def _state(module: nn.Module, tensors: Sequence[Tensor]) -> list[object]:
    """What changes when one of a module's tensors does, or the precision, or when training starts."""
    precisions = {t.device.type: torch.is_autocast_enabled(t.device.type) for t in tensors}
    started = [part.started for part in module.modules() if isinstance(part, TrainingStarted)]
    return [precisions, started, [(t._version, t.dtype, t.device) for t in tensors]]


def cosine_logits(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """(B,E) image features, (K,E) class features -> (B,K) cosines times `scale`, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return scale * normalize(features.float(), dim=1) @ normalize(classes.float(), dim=1).T
