"""Classes as texts: their features, and the classifier with these features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim.backbones.clip import TextTower

TEMPLATE = "a photo of a {}."


def require_places(templates: Sequence[str]) -> None:
    """Raises ValueError unless there are templates, and each has ``{}`` at the position of the class name."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("templates must be one or more texts with {} at the position of the class name")


def readable(name: str) -> str:
    """A class or domain name as written in a prompt: ``art_painting`` -> ``art painting``."""
    return name.replace("_", " ")


@torch.no_grad()
def class_features(tower: TextTower, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K,E) unit features of the classes: the normalised features of all templates, averaged and normalised again.

    Radford et al. 2021, arXiv:2103.00020, section 3.1.4. A template has ``{}`` at the position of the name.
    """
    texts = [template.format(readable(name)) for name in class_names for template in templates]
    features = torch.cat([normalize(tower(texts[i : i + 256]).float(), dim=1) for i in range(0, len(texts), 256)])
    return normalize(features.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=1)


class TextHead(nn.Module):
    """Cosine of an image to each class's text, times CLIP's scale."""

    classes: Tensor

    def __init__(self, classes: Tensor, scale: float) -> None:
        """`classes`: (K,E) unit features."""
        super().__init__()
        self.register_buffer("classes", classes)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B,E) image features -> (B,K) logits."""
        return cosine_logits(features, self.classes, self.scale)


class TrainingStarted(nn.Module):
    """Whether training has started. Until then learned words are not used, and classification is zero-shot.

    So in a run with text, the row before any training is zero-shot CLIP for every start value of the words.
    `Strategy.begin` sets it with `start_training`. It is not saved, because resuming and loading call `begin` again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started = False

    def forward(self) -> bool:
        """Whether training has started."""
        return self.started


def start_training(learner: nn.Module) -> None:
    """Set every TrainingStarted in the learner."""
    for module in learner.modules():
        if isinstance(module, TrainingStarted):
            module.started = True


class Kept(nn.Module):
    """A cache for a tensor that a module computes only from its weights; recomputed only when these have changed.

    It is for class features in evaluation. The cached tensor is used only if the weights are the same tensors in the
    same state (PyTorch counts the writes to each), in the same precision and without gradients. It is dropped whenever
    the learner changes its mode, as before every evaluation, because PyTorch does not count the writes of a fused
    optimizer and writes to `.data`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.state: list[object] = []
        self.value: Tensor | None = None

    def train(self, mode: bool = True) -> "Kept":
        """Drop the cached tensor."""
        self.tensors, self.state, self.value = [], [], None
        return super().train(mode)

    def forward(self, module: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """The result of `make()`, which must depend only on the module's weights."""
        if torch.is_grad_enabled() or module.training:
            return make()
        tensors = [*module.parameters(), *module.buffers()]
        state = _state(module, tensors)
        same = len(tensors) == len(self.tensors) and all(a is b for a, b in zip(tensors, self.tensors, strict=True))
        if self.value is None or not same or state != self.state:
            self.tensors, self.state, self.value = tensors, state, make()
        return self.value


def _state(module: nn.Module, tensors: Sequence[Tensor]) -> list[object]:
    """A state that changes when one of the module's tensors or the precision changes, or when training starts."""
    precisions = {t.device.type: torch.is_autocast_enabled(t.device.type) for t in tensors}
    started = [part.started for part in module.modules() if isinstance(part, TrainingStarted)]
    return [precisions, started, [(t._version, t.dtype, t.device) for t in tensors]]


def cosine_logits(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """(B,E) image features, (K,E) class features -> (B,K) cosines times `scale`, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return scale * normalize(features.float(), dim=1) @ normalize(classes.float(), dim=1).T
