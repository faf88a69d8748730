"""clip_micro: a small CLIP that learned glyphs together with their captions."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import checkpoint, rng
from clsim.backbones.load import Backbone, load_backbone
from clsim.backbones.load_clip import MICRO, small_clip, small_tokenizer, small_towers
from clsim.data import captions, glyphs
from clsim.data.streams import DataAccess
from clsim.data.transforms import evaluation
from clsim.parts.text import TEMPLATE, class_features, cosine_logits
from clsim.pretrain.trainer import Trainer, features_with_drop, save_half

ENSEMBLE = tuple(text.format(d=d, c="{}") for d in glyphs.DOMAINS for text in ("a {d} of a {c}.", "{c}, {d}"))
TEST_IMAGES = 30  # of each class and domain, to measure quality
TEST_SEED = 1  # of the glyphs that measure quality; the recipe's seed makes those trained on


@dataclass(frozen=True)
class Recipe:
    """How clip_micro is pretrained: contrast of images and captions, Muon for matrices and AdamW for the rest."""

    steps: int = 700
    batch_size: int = 256
    lr: float = 4e-3  # peak; linear warm-up, then linear to zero
    warmup_steps: int = 100
    weight_decay: float = 0.05
    # of the images, in the order of the names: few are far from photographs, as on the web
    domain_shares: tuple[float, ...] = (0.03, 0.03, 0.03, 0.004, 0.902, 0.004)
    filler_share: float = 0.25  # of the captions that begin with fillers
    token_drop: float = 0.5  # share of patch tokens left out in training (Li et al. 2023, arXiv:2212.00794) ...
    whole_share: float = 0.25  # ... but for this last share of the steps
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Images with their captions."""

    images: NDArray[np.uint8]  # (B,3,32,32)
    classes: NDArray[np.int64]  # (B,)
    domains: NDArray[np.int64]  # (B,)
    captions: list[captions.Caption]  # B


def seen_classes() -> list[int]:
    """The classes that are not held out of pretraining."""
    return [c for c in range(len(glyphs.class_names())) if c not in glyphs.HELD_OUT]


def pairs(recipe: Recipe, step: int) -> Pairs:
    """The batch of a step: classes that are not held out, each image in the world once."""
    draw = np.random.default_rng(rng.derive(recipe.seed, "pairs", step))
    size = recipe.batch_size
    classes = draw.choice(seen_classes(), size=size)
    domains = draw.choice(len(glyphs.DOMAINS), size=size, p=recipe.domain_shares)
    images = glyphs.render(classes, domains, np.arange(size) + step * size, recipe.seed)
    names = glyphs.class_names()
    written = [
        captions.caption(names[c], d, glyphs.DOMAINS, draw) for c, d in zip(classes, domains.tolist(), strict=True)
    ]
    return Pairs(images, classes, domains, written)


def matches(batch: Pairs) -> Tensor:
    """(B,B) true where image i fits caption j: the class is the same, and the domain, where the caption names one."""
    classes, domains = torch.from_numpy(batch.classes), torch.from_numpy(batch.domains)
    named = torch.tensor([c.domain for c in batch.captions])
    return (classes[:, None] == classes) & ((named == -1) | (domains[:, None] == named))


def contrast(logits: Tensor, fits: Tensor) -> Tensor:
    """CLIP's loss on (B,B) logits of images against captions, with every pair that fits a positive one.

    Each row, and each column, should spread its softmax evenly over what fits (Yang et al. 2022, arXiv:2204.03610,
    eq. 3, which call it UniCL): with a hundred classes a batch holds many captions that fit an image.
    """
    rows, columns = fits / fits.sum(1, keepdim=True), fits.T / fits.sum(0)[:, None]
    losses = nn.functional.cross_entropy(logits, rows), nn.functional.cross_entropy(logits.T, columns)
    return (losses[0] + losses[1]) / 2


class Pretraining:
    """clip_micro under training."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None] = print) -> None:
        """Goes on from the checkpoint in `out`, if there is one. Raises RequestError if it has another recipe."""
        self.recipe = recipe
        torch.manual_seed(rng.derive(recipe.seed, "initialisation"))
        self.clip = small_clip(MICRO)
        self.image, self.text = small_towers(self.clip, MICRO.image_size)
        self.trainer = Trainer(recipe, self.clip, recipe.steps, out, say)

    def run(self, stop: int | None = None) -> Path:
        """Train to the end, or to step `stop`; the weights file."""
        self.trainer.run(self.loss, lambda steps: None, stop)
        return save_half(self.clip, self.trainer.out / "clip_micro.safetensors")

    def loss(self, step: int) -> Tensor:
        """The contrast of a step's batch."""
        recipe, batch = self.recipe, pairs(self.recipe, step)
        drop = recipe.token_drop if step < (1 - recipe.whole_share) * recipe.steps else 0.0
        pixels = evaluation(torch.from_numpy(batch.images), self.image.pixels)
        draw = rng.generator(recipe.seed, "token drop", step)
        with torch.autocast("cpu", torch.bfloat16):
            images = features_with_drop(self.image, pixels, drop, draw)
            texts = self._texts([c.text for c in batch.captions], step)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        return contrast(scale * normalize(images.float(), dim=1) @ normalize(texts.float(), dim=1).T, matches(batch))

    def _texts(self, texts: list[str], step: int) -> Tensor:
        """(B,E) features of captions, the last of them after a random number of fillers."""
        draw = np.random.default_rng(rng.derive(self.recipe.seed, "fillers", step))
        plain = len(texts) - round(len(texts) * self.recipe.filler_share)
        # in a batch of their own: sequences are cut at the end of their longest text, and these are long
        parts = [texts[:plain], [self._after_fillers(text, draw) for text in texts[plain:]]]
        return torch.cat([self.text(part) for part in parts if part])

    def _after_fillers(self, text: str, draw: np.random.Generator) -> str:
        room = self.text.context_length - 2 - len(small_tokenizer().encode(text))
        return captions.behind_fillers(text, int(draw.integers(1, room + 1)), draw)


@torch.no_grad()
def quality(backbone: Backbone) -> dict[str, dict[str, dict[str, float]]]:
    """Zero-shot accuracy in every domain: one template and the ensemble, among seen and among held-out classes."""
    assert backbone.text is not None
    names = glyphs.class_names()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group, chosen in (("seen", seen_classes()), ("held out", sorted(glyphs.HELD_OUT))):
        features = [_features(backbone, chosen, domain) for domain in range(len(glyphs.DOMAINS))]
        for how, templates in (("one template", (TEMPLATE,)), ("ensemble", ENSEMBLE)):
            texts = class_features(backbone.text, [names[c] for c in chosen], templates)
            shares = [round(_accuracy(images, texts), 4) for images in features]
            found.setdefault(group, {})[how] = dict(zip(glyphs.DOMAINS, shares, strict=True))
    return found


def _features(backbone: Backbone, chosen: list[int], domain: int) -> Tensor:
    """(K * TEST_IMAGES, E) features of test images of a domain, class after class."""
    classes = np.repeat(chosen, TEST_IMAGES)
    indices = np.tile(np.arange(TEST_IMAGES), len(chosen))
    images = glyphs.render(classes, np.full_like(classes, domain), indices, TEST_SEED)
    features = [
        backbone.image(evaluation(torch.from_numpy(images[i : i + 100]), backbone.image.pixels))
        for i in range(0, len(images), 100)
    ]
    return torch.cat(features)


def _accuracy(features: Tensor, texts: Tensor) -> float:
    """The share of images, TEST_IMAGES of each class, whose class has the nearest of the (K,E) texts."""
    predicted = cosine_logits(features, texts, 1.0).argmax(1)
    return float((predicted == torch.arange(len(texts)).repeat_interleave(TEST_IMAGES)).float().mean())


def pretrain(recipe: Recipe, access: DataAccess, folder: Path) -> Path:
    """Train, then write the weights into `folder`, with the recipe and the measured quality in a JSON file.

    No data is read: the images are drawn as they are needed.
    """
    job = Pretraining(recipe, folder)
    weights = job.run()
    report = {
        "command": "clsim pretrain clip_micro",
        "data": f"glyphs of {len(seen_classes())} classes in six domains, drawn as they are needed, each seen once",
        "recipe": asdict(recipe),
        "seconds": round(job.trainer.seconds),
        "threads": torch.get_num_threads(),
        "zero-shot accuracy": quality(load_backbone("clip_micro", weights)),
    }
    checkpoint.write_text(weights.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["zero-shot accuracy"], indent=1))
    return weights
