"""Backbones by name: the bundled ones, and any timm VisionTransformer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from clsim.backbones.registry import BUNDLED
from clsim.backbones.vit import VisionTower, micro_vit, nano_vit
from clsim.data.transforms import Pixels
from clsim.errors import RequestError, unknown

WEIGHTS = Path(__file__).parent / "weights"


@dataclass
class Backbone:
    """A pretrained model as the towers that strategies build on. `text` is None where there is none."""

    name: str
    image: VisionTower
    text: None = None


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """The backbone called `name`, frozen, in float32; with the weights in a local file where one is given.

    Raises RequestError for unknown names and for weights that cannot be had.
    """
    if name == "vit_nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = VisionTower(nano_vit(), Pixels(size=16, crop=1.0))
    elif name == "vit_micro":
        tower = VisionTower(micro_vit(), Pixels(size=32, crop=1.0))
        _load_into(tower, read_weights(WEIGHTS / "vit_micro.safetensors"), name)
    else:
        tower = _timm_tower(name, pretrained=weights is None)
    if weights is not None:
        _load_into(tower, read_weights(weights), str(weights))
    tower.requires_grad_(False)
    return Backbone(name, tower.eval())


def recipe(name: str) -> dict[str, object]:
    """How bundled weights were made and how good they are, as written beside them."""
    file = WEIGHTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file, or from a PyTorch file of plain tensors."""
    if not file.is_file():
        raise RequestError(f"no weights file {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # every broken file breaks its reader in a way of its own
        raise RequestError(f"cannot read weights from {file}: {error}") from error
    return tensors.get("state_dict", tensors.get("model", tensors))  # type: ignore[no-any-return]


def _load_into(tower: VisionTower, weights: dict[str, Tensor], origin: str) -> None:
    """Copy weights into the tower; a classifier's head may be among them, and is left out."""
    wanted = tower.vit.state_dict()
    missing = [key for key in wanted if key not in weights]
    wrong = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing or wrong:
        what = f"lacks {missing[0]!r}" if missing else f"has another shape for {wrong[0]!r}"
        raise RequestError(f"the weights of {origin} do not fit this backbone: the file {what}")
    tower.vit.load_state_dict({key: weights[key] for key in wanted})


def _timm_tower(name: str, pretrained: bool) -> VisionTower:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("backbone", name, [*BUNDLED, *timm.list_models("vit_*")])
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # no network, no such tag, no such file in the cache: all mean the same to a user
        raise RequestError(
            f"the weights of {name!r} cannot be had here ({type(error).__name__}): run once where there is a network "
            f"(they are kept in the Hub's cache), or give a local file with --weights FILE"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise RequestError(f"{name!r} is a {type(model).__name__}; image towers are timm VisionTransformers")
    about: Any = model.pretrained_cfg
    size: int = cast(Any, model.patch_embed).img_size[0]
    return VisionTower(model, Pixels(size, tuple(about["mean"]), tuple(about["std"])))
