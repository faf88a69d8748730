"""Learners on tuned towers: an image tower with a linear head, or with class-name features from a text tower."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from clsim.backbones.clip import TextTower
from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower, TunerHooks
from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.outputs import Outputs
from clsim.parts.heads import LinearHead
from clsim.parts.text import TEMPLATE, Kept, TrainingStarted, class_features, cosine_logits, readable
from clsim.parts.text_prompts import PromptedText, Wording
from clsim.parts.tuners import require_blocks

Where = Literal["image", "text", "both"]


class TunedImage(nn.Module):
    """Image features from a tower with its tuner."""

    def __init__(self, tower: Tower, sites: TunerHooks) -> None:
        super().__init__()
        self.tower = tower
        self.sites = sites

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,E) features."""
        return self.tower(batch.known_images, self.sites)  # type: ignore[no-any-return]


class BankFeatures(nn.Module):
    """Image features of the frozen tower, from the bank."""

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,E) features."""
        return batch.known_features


class TunedText(nn.Module):
    """Features of class names from a text tower with its tuner."""

    ids: Tensor
    ends: Tensor

    def __init__(self, tower: TextTower, sites: TunerHooks, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.sites = sites
        ids, ends = tower.tokens([TEMPLATE.format(readable(name)) for name in class_names])
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("ends", ends, persistent=False)

    def forward(self) -> Tensor:
        """(K,E) features of the classes."""
        return self.tower.features(self.tower.embed(self.ids), self.ends, self.sites)


class TextsInContext(nn.Module):
    """Features of class names after learned words; until training begins, features of the plain template."""

    plain: Tensor

    def __init__(self, tower: TextTower, class_names: tuple[str, ...], words: nn.Module, count: int) -> None:
        """`words()` returns (1, count, D) vectors."""
        super().__init__()
        self.prompted = PromptedText(tower, Wording.of(tower, class_names, count))
        self.words = words
        self.started = TrainingStarted()
        self.register_buffer("plain", class_features(tower, class_names, (TEMPLATE,)), persistent=False)

    def forward(self) -> Tensor:
        """(K,E) features of the classes."""
        return self.prompted(self.words())[0] if self.started() else self.plain  # type: ignore[no-any-return]


class Headed(nn.Module):
    """Image features with a head."""

    def __init__(self, images: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.images = images
        self.head = head

    def forward(self, batch: Batch) -> Outputs:
        """A batch -> Outputs with logits and the head's input features."""
        features = self.images(batch)
        return Outputs(self.head(features), features)


class TextClassifier(nn.Module):
    """Image features, classified by cosine to class features, which may be trained."""

    def __init__(self, images: nn.Module, texts: nn.Module, scale: float) -> None:
        """`texts()` returns (K,E) features."""
        super().__init__()
        self.images = images
        self.texts = texts
        self.scale = scale
        self.kept = Kept()

    def forward(self, batch: Batch) -> Outputs:
        """A batch -> Outputs with logits and the image features."""
        features = self.images(batch)
        return Outputs(cosine_logits(features, self.kept(self.texts, self.texts), self.scale), features)


def tuned(
    backbone: Backbone,
    info: StreamInfo,
    where: Where,
    tune: Callable[[Tower], TunerHooks],
    texts: Callable[[], nn.Module | None] = lambda: None,
) -> nn.Module:
    """The learner of a tuner: `tune(tower)` makes the tuner of a tower, or unfreezes weights of the tower.

    With `where` "text" or "both", images are classified by cosine to the class-name features, which come from the tuned
    tower or from `texts()`. Raises RequestError for an image tower without blocks, and for a backbone without text.
    """
    image = backbone.image
    if where != "text":
        require_blocks(image)
    images = BankFeatures() if where == "text" else TunedImage(image, tune(image))
    if where == "image":
        return Headed(images, LinearHead(image.out_dim, info.num_classes))
    read, text = texts(), backbone.text_tower
    if read is None:
        read = TunedText(text, tune(text), info.class_names)
    return TextClassifier(images, read, text.logit_scale)
