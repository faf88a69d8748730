"""Backbones by name: the bundled ones, any timm VisionTransformer, and open_clip's models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from clsim.backbones.registry import BUNDLED
from clsim.backbones.stored import WEIGHTS, load_into, no_weights, read_weights
from clsim.backbones.towers import Tower
from clsim.backbones.vit import VisionTower, micro_vit, nano_vit
from clsim.data.transforms import Pixels
from clsim.errors import RequestError, unknown

if TYPE_CHECKING:  # open_clip takes a second to import, and most runs do without
    from clsim.backbones.clip import TextTower


@dataclass
class Backbone:
    """A pretrained model as the towers that strategies build on. `text` is None where there is none."""

    name: str
    image: Tower
    text: "TextTower | None" = None

    @property
    def text_tower(self) -> "TextTower":
        """The text tower. Raises RequestError where there is none."""
        if self.text is None:
            raise RequestError(f"{self.name} has no text tower")
        return self.text

    def towers(self) -> list[Tower]:
        """The image tower, and the text tower where there is one."""
        return [self.image] if self.text is None else [self.image, self.text]

    def fingerprint(self) -> str:
        """A hash of all weights."""
        return "".join(tower.fingerprint() for tower in self.towers())


def load_backbone(name: str, weights: Path | None = None, image_size: int | None = None) -> Backbone:
    """The backbone called `name`, frozen, in float32; with the weights in a local file where one is given.

    Raises RequestError for unknown names and for weights that cannot be had.
    """
    if name in ("clip_micro", "clip_nano") or name.startswith("clip:"):
        from clsim.backbones.load_clip import load_clip

        image, text = load_clip(name, weights)
        backbone = Backbone(name, image, text)
    else:
        backbone = Backbone(name, _vision_tower(name, weights))
    for tower in backbone.towers():
        tower.requires_grad_(False).eval()
    return backbone


def _vision_tower(name: str, weights: Path | None) -> VisionTower:
    if name == "vit_nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = VisionTower(nano_vit(), Pixels(size=16, crop=1.0))
    elif name == "vit_micro":
        tower = VisionTower(micro_vit(), Pixels(size=32, crop=1.0))
        load_into(tower.vit, read_weights(WEIGHTS / "vit_micro.safetensors"), name)
    else:
        tower = _timm_tower(name, pretrained=weights is None)
    if weights is not None:
        load_into(tower.vit, read_weights(weights), str(weights))
    return tower


def recipe(name: str) -> dict[str, object]:
    """How bundled weights were made and how good they are, as written beside them."""
    file = WEIGHTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def _timm_tower(name: str, pretrained: bool) -> VisionTower:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("backbone", name, [*BUNDLED, *timm.list_models("vit_*")])
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        raise no_weights(name, error) from error
    if not isinstance(model, VisionTransformer):
        raise RequestError(f"{name!r} is a {type(model).__name__}; image towers are timm VisionTransformers")
    about: Any = model.pretrained_cfg
    size: int = cast(Any, model.patch_embed).img_size[0]
    return VisionTower(model, Pixels(size, tuple(about["mean"]), tuple(about["std"])))
