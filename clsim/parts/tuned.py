"""Learners on tuned towers: an image tower under a linear head, or against class names read by a text tower."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clsim.backbones.clip import TextTower
from clsim.backbones.towers import Sites, Tower
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.text import TEMPLATE, Begun, class_features, cosine_logits, readable
from clsim.parts.text_prompts import PromptedText, Wording
from clsim.parts.tuners import EncodedTokens, Tokens, require_blocks

Where = Literal["image", "text", "both"]


class TunedImage(nn.Module):
    """Features of images under an image tower and what tunes it."""

    def __init__(self, tower: Tower, sites: Sites) -> None:
        super().__init__()
        self.tower = tower
        self.sites = sites

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,E) features."""
        return self.tower(batch.images, self.sites)  # type: ignore[no-any-return]


class BankFeatures(nn.Module):
    """Features of images under the frozen image tower, from the bank."""

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,E) features."""
        assert batch.features is not None
        return batch.features


class TunedText(nn.Module):
    """Features of class names under a text tower and what tunes it."""

    ids: Tensor
    ends: Tensor

    def __init__(self, tower: TextTower, sites: Sites, class_names: tuple[str, ...]) -> None:
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
    """Features of class names behind learned words; of the plain template until training begins."""

    plain: Tensor

    def __init__(
        self, tower: TextTower, class_names: tuple[str, ...], words: Tokens | EncodedTokens, count: int
    ) -> None:
        """`words` gives (1, count, D) vectors."""
        super().__init__()
        self.prompted = PromptedText(tower, Wording.of(tower, class_names, count))
        self.words = words
        self.begun = Begun()
        self.register_buffer("plain", class_features(tower, class_names, (TEMPLATE,)), persistent=False)

    def forward(self) -> Tensor:
        """(K,E) features of the classes."""
        return self.prompted(self.words())[0] if self.begun() else self.plain  # type: ignore[no-any-return]


class Headed(nn.Module):
    """Image features under a head."""

    def __init__(self, images: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.images = images
        self.head = head

    def represent(self, batch: Batch) -> Tensor:
        """A batch -> (B,E) features, what the head reads."""
        return self.images(batch)  # type: ignore[no-any-return]

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,K) logits."""
        return self.head(self.images(batch))  # type: ignore[no-any-return]


class TextClassifier(nn.Module):
    """Image features against class features that learn. The latter are kept while nothing can move them."""

    def __init__(self, images: nn.Module, texts: nn.Module, scale: float) -> None:
        """`texts()` gives (K,E) features."""
        super().__init__()
        self.images = images
        self.texts = texts
        self.scale = scale
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "TextClassifier":
        """Between training and evaluation the weights may have moved."""
        self.kept = None
        return super().train(mode)

    def classes(self) -> Tensor:
        """(K,E) features of the classes."""
        if self.kept is not None and not torch.is_grad_enabled():
            return self.kept
        found: Tensor = self.texts()
        self.kept = None if self.training or torch.is_grad_enabled() else found
        return found

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,K) logits."""
        return cosine_logits(self.images(batch), self.classes(), self.scale)


def tuned(
    backbone: Any,
    info: Any,
    where: Where,
    tune: Callable[[Tower], Sites],
    texts: Callable[[], nn.Module | None] = lambda: None,
) -> nn.Module:
    """The learner of a tuner: `tune(tower)` makes what tunes it, or lets weights of it learn.

    With `where` "text" or "both" images are told apart by cosine to the class names, read by the tuned tower or by what
    `texts()` makes. Raises RequestError for an image tower without blocks.
    """
    image = backbone.image
    if where != "text":
        require_blocks(image)
    images = BankFeatures() if where == "text" else TunedImage(image, tune(image))
    if where == "image":
        return Headed(images, LinearHead(image.out_dim, info.num_classes))
    read = texts()
    if read is None:
        read = TunedText(backbone.text, tune(backbone.text), info.class_names)
    return TextClassifier(images, read, backbone.text.logit_scale)
