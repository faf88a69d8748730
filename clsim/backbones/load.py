"""Backbones by name: the bundled ones, any timm VisionTransformer, and open_clip's models."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clsim.backbones.registry import BUNDLED
from clsim.backbones.stored import WEIGHTS, load_into, no_weights, read_weights, require_multiple
from clsim.backbones.towers import Tower
from clsim.backbones.vit import VisionTower, micro_vit, nano_vit
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError, unknown

if TYPE_CHECKING:  # open_clip takes a second to import, and most runs do not need it
    from timm.models.vision_transformer import VisionTransformer

    from clsim.backbones.clip import TextTower


@dataclass
class Backbone:
    """A pretrained model as towers, on which strategies build. `text` is None if there is no text tower."""

    name: str
    image: Tower
    text: "TextTower | None" = None

    @property
    def text_tower(self) -> "TextTower":
        """The text tower. Raises RequestError if there is none."""
        if self.text is None:
            raise RequestError(f"{self.name} has no text tower")
        return self.text

    def towers(self) -> list[Tower]:
        """The image tower, and the text tower if there is one."""
        return [self.image] if self.text is None else [self.image, self.text]

    def fingerprint(self) -> str:
        """A hash of all weights."""
        return "".join(tower.fingerprint() for tower in self.towers())


def load_backbone(name: str, weights: Path | None = None, image_size: int | None = None) -> Backbone:
    """The backbone called `name`, frozen, in float32; with the weights from a local file if one is given.

    `image_size`: side of the input images in pixels, for a transformer of timm or open_clip, in place of the size it
    was trained with. Its position embeddings are then resampled in the same way as in those libraries. Raises
    RequestError for unknown names, unavailable weights, and an image size that the backbone cannot have.
    """
    if name in BUNDLED and image_size is not None:
        raise RequestError(f"{name} takes images of one size only; --image-size is for backbones of timm and open_clip")
    if name in ("clip_micro", "clip_nano") or name.startswith("clip:"):
        from clsim.backbones.load_clip import load_clip

        image, text = load_clip(name, weights, image_size)
        backbone = Backbone(name, image, text)
    else:
        backbone = Backbone(name, _vision_tower(name, weights, image_size))
    for tower in backbone.towers():
        tower.requires_grad_(False).eval()
    return backbone


def _vision_tower(name: str, weights: Path | None, image_size: int | None) -> VisionTower:
    if name == "vit_nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = VisionTower(nano_vit(), InputSpec(size=16, crop=1.0))
    elif name == "vit_micro":
        tower = VisionTower(micro_vit(), InputSpec(size=32, crop=1.0))
        load_into(tower.vit, read_weights(WEIGHTS / "vit_micro.safetensors"), name)
    else:
        tower = _timm_tower(name, weights is None, image_size)
    if weights is not None:
        stored = read_weights(weights)
        load_into(tower.vit, stored if image_size is None else resampled(stored, tower.vit), str(weights))
    return tower


def resampled(weights: dict[str, Tensor], vit: "VisionTransformer") -> dict[str, Tensor]:
    """Weights of a timm model for square images, with their position embedding resampled to the grid of `vit`."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    stored = weights.get("pos_embed")
    if stored is None or stored.ndim != 3:
        return weights
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens  # tokens that have a position but are not in the grid
    patches = stored.shape[1] - prefix
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return weights  # of another model; `load_into` raises the error about its shape
    grid = list(vit.patch_embed.grid_size)
    return weights | {"pos_embed": resample_abs_pos_embed(stored, grid, num_prefix_tokens=prefix)}


def recipe(name: str) -> dict[str, object]:
    """How bundled weights were made and how accurate they are, from the file next to them."""
    file = WEIGHTS / f"{name}.json"
    read: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
    return read


def _timm_tower(name: str, pretrained: bool, image_size: int | None) -> VisionTower:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("backbone", name, [*BUNDLED, *timm.list_models("vit_*")])
    sizes: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    if image_size is not None:
        with torch.device("meta"):  # check the size first, without a download or computation
            unfilled = _checked(name, timm.create_model(name, pretrained=False, num_classes=0))
        require_multiple(name, image_size, cast(Any, unfilled.patch_embed).feat_ratio())
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **sizes)
    except Exception as error:
        raise no_weights(name, error) from error
    model = _checked(name, model)
    about: Any = model.pretrained_cfg
    size: int = cast(Any, model.patch_embed).img_size[0]
    return VisionTower(model, InputSpec(size, tuple(about["mean"]), tuple(about["std"])))


def _checked(name: str, model: torch.nn.Module) -> "VisionTransformer":
    """The model, unchanged. Raises RequestError if it is of another kind."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise RequestError(f"{name!r} is a {type(model).__name__}; image towers are timm VisionTransformers")
    return model
