"""Backbones by name: the bundled ones, any timm VisionTransformer, and open_clip's models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clsim.backbones.layouts import for_timm, pools_average, resampled
from clsim.backbones.names import nearest, no_backbone
from clsim.backbones.registry import BUNDLED
from clsim.backbones.stored import (
    WEIGHTS,
    load_into,
    no_weights,
    read_weights,
    require_equal,
    require_multiple,
    say,
)
from clsim.backbones.towers import Tower
from clsim.backbones.vit import VisionTower, micro_vit, nano_vit, require_pooling, timm_layer
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError

if TYPE_CHECKING:  # open_clip takes a second to import, and most runs do not need it
    from timm.models.vision_transformer import VisionTransformer

    from clsim.backbones.clip import TextTower


__all__ = ["Backbone", "load_backbone", "recipe", "resampled"]


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
    RequestError for unknown names, unavailable weights, weights that do not fit, an image size that the backbone
    cannot have, and features that are not the library's.
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
    if isinstance(backbone.image, VisionTower):
        require_library_features(name, backbone.image)
    return backbone


def _vision_tower(name: str, weights: Path | None, image_size: int | None) -> VisionTower:
    stored = None if weights is None else read_weights(weights)
    if name == "vit_nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = VisionTower(nano_vit(), InputSpec(size=16, crop=1.0))
    elif name == "vit_micro":
        tower = VisionTower(micro_vit(), InputSpec(size=32, crop=1.0))
        load_into(tower.vit, read_weights(WEIGHTS / "vit_micro.safetensors"), name)
    else:
        tower = _timm_tower(name, stored, image_size)
    if stored is not None:
        load_into(tower.vit, for_timm(stored, tower.vit, str(weights)), str(weights))
    return tower


def require_library_features(name: str, tower: VisionTower) -> None:
    """Raises RequestError if the tower's features of a random image are not those of timm's own forward."""
    size = tower.pixels.size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = tower.vit.forward_head(tower.vit.forward_features(image), pre_logits=True)
        require_equal(name, "image", tower(image), theirs)


def recipe(name: str) -> dict[str, object]:
    """How bundled weights were made and how accurate they are, from the file next to them."""
    file = WEIGHTS / f"{name}.json"
    read: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
    return read


def _timm_tower(name: str, stored: dict[str, Tensor] | None, image_size: int | None) -> VisionTower:
    """timm's model; with its published weights, unless there are `stored` ones, which are not loaded here."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise no_backbone(name, timm.list_models(module="vision_transformer"))
    tags = [known.partition(".")[2] for known in timm.models.get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise nearest("tag of " + architecture, tag, tags)
    options: dict[str, Any] = {}
    with torch.device("meta"):  # refuse first, without a download or computation
        unfilled = _checked(name, timm.create_model(name, pretrained=False, num_classes=0))
        if image_size is not None:
            require_multiple(name, image_size, cast(Any, unfilled.patch_embed).feat_ratio())
            options["img_size"] = image_size
    if stored is not None and pools_average(stored) and unfilled.global_pool == "token":
        say(f"{name} pools by average: its weights normalise after pooling (fc_norm)")
        options["global_pool"] = "avg"
    try:
        model = timm.create_model(name, pretrained=stored is None, num_classes=0, **options)
    except Exception as error:
        raise no_weights(name, error) from error
    model = _checked(name, model)
    about: Any = model.pretrained_cfg
    size: int = cast(Any, model.patch_embed).img_size[0]
    return VisionTower(model, InputSpec(size, tuple(about["mean"]), tuple(about["std"])))


def _checked(name: str, model: torch.nn.Module) -> "VisionTransformer":
    """The model, unchanged. Raises RequestError if it is of another kind, or if its class computes other features."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise RequestError(f"{name!r} is a {type(model).__name__}; image towers are timm VisionTransformers")
    for method in ("forward_features", "forward_head", "pool", "_pos_embed"):
        if getattr(type(model), method) is not getattr(VisionTransformer, method):
            raise RequestError(
                f"{name!r} is a {type(model).__name__}, whose {method} is not that of timm's VisionTransformer: "
                "a tower's features would differ from timm's"
            )
    for block in model.blocks:
        timm_layer(block)
    require_pooling(model)
    return model
