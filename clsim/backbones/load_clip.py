"""CLIP backbones: the bundled ones, and open_clip's models by name and tag."""

import gzip
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from open_clip import (
    CLIP,
    create_model,
    get_model_config,
    get_pretrained_cfg,
    get_tokenizer,
    list_models,
    list_pretrained_tags_by_model,
)
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, resize_pos_embed
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor

from clsim.backbones.clip import ClipVisionTower, OpaqueTower, TextTower, require_text_model
from clsim.backbones.layouts import for_clip, quick_gelu
from clsim.backbones.names import LISTED, nearest
from clsim.backbones.stored import (
    WEIGHTS,
    listed,
    load_into,
    no_weights,
    read_weights,
    require_equal,
    require_multiple,
    say,
)
from clsim.backbones.towers import Tower
from clsim.data import captions, glyphs
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError

CONTEXT = 64  # tokens: DAPL puts 32 learned ones before a name


@dataclass(frozen=True)
class Shape:
    """The size of a bundled CLIP; heads have width 32."""

    image_size: int
    width: int
    layers: int
    text_width: int
    text_layers: int
    embed_dim: int


MICRO = Shape(image_size=32, width=128, layers=6, text_width=128, text_layers=4, embed_dim=128)
NANO = Shape(image_size=16, width=32, layers=2, text_width=32, text_layers=2, embed_dim=24)


@lru_cache
def small_tokenizer() -> SimpleTokenizer:
    """open_clip's tokenizer with clip_micro's merges: each word of its captions is one token, others are several."""
    merges = captions.merges(captions.vocabulary(glyphs.class_names()))
    lines = ["#version: clip_micro", *(" ".join(pair) for pair in merges)]
    file: Any = io.BytesIO(gzip.compress("\n".join(lines).encode()))  # the content of open_clip's vocabulary file
    return SimpleTokenizer(file, context_length=CONTEXT)


def small_clip(shape: Shape) -> CLIP:
    """An open_clip model of this size for 4x4 patches and texts of up to 64 tokens; its weights are random."""
    vision = CLIPVisionCfg(shape.layers, shape.width, head_width=32, patch_size=4, image_size=shape.image_size)
    text = CLIPTextCfg(
        context_length=CONTEXT,
        vocab_size=small_tokenizer().vocab_size,
        width=shape.text_width,
        heads=shape.text_width // 32,
        layers=shape.text_layers,
    )
    return CLIP(shape.embed_dim, vision, text)


def small_towers(clip: CLIP, size: int) -> tuple[ClipVisionTower, TextTower]:
    """The towers of a small CLIP for images of size x size."""
    return ClipVisionTower(clip.visual, InputSpec(size, crop=1.0)), TextTower(clip, small_tokenizer())


def load_clip(name: str, weights: Path | None, image_size: int | None = None) -> tuple[Tower, TextTower]:
    """Image and text tower of `clip_micro`, `clip_nano` or `clip:MODEL/TAG`. Raises RequestError as `load_backbone`."""
    if name.startswith("clip:"):
        return _open_clip(name, weights, image_size)
    shape = MICRO if name == "clip_micro" else NANO
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = small_clip(shape)
    file = weights or (WEIGHTS / "clip_micro.safetensors" if name == "clip_micro" else None)
    if file is not None:
        load_into(clip, for_clip(read_weights(file), clip), name if weights is None else str(file))
    image, text = small_towers(clip, shape.image_size)
    require_library_features(name, clip, image, text)
    return image, text


def _open_clip(name: str, weights: Path | None, image_size: int | None) -> tuple[Tower, TextTower]:
    """One of open_clip's models; the tag selects the weights, and with them QuickGELU or GELU.

    A local file that says which of the two it was trained with gets that one.
    """
    model_name, tag = _model_and_tag(name)
    stored = None if weights is None else read_weights(weights)
    if image_size is not None:
        _require_size(name, model_name, image_size)
    _require_supported(name, model_name)
    about = get_pretrained_cfg(model_name, tag)
    quick = bool(about.get("quick_gelu"))
    if stored is not None:
        quick = _quick_gelu(name, model_name, str(weights), stored, quick)
    try:
        with _without_warnings():
            clip: Any = create_model(
                model_name,
                pretrained=tag if weights is None else None,
                force_quick_gelu=quick,
                force_image_size=image_size,  # resamples the position embeddings, too
                load_weights=weights is None,
                pretrained_text=False,
                require_pretrained=weights is None,
            )
            tokenizer = get_tokenizer(model_name)
    except Exception as error:
        raise no_weights(name, error) from error
    if stored is not None:
        load_into(clip, _resized(for_clip(stored, clip), clip), str(weights))
    size = clip.visual.image_size
    side = size if isinstance(size, int) else size[0]
    pixels = InputSpec(side, tuple(about["mean"]), tuple(about["std"]), 1.0, about.get("interpolation", "bicubic"))
    image = _image_tower(name, clip.visual, pixels)
    text = TextTower(clip, tokenizer)
    require_library_features(name, clip, image, text)
    return image, text


def _model_and_tag(name: str) -> tuple[str, str]:
    """The parts of `clip:MODEL/TAG`. Raises RequestError, with the nearest right name, if one is unknown."""
    model_name, _, tag = name.removeprefix("clip:").partition("/")
    if model_name not in list_models():
        guess = model_name
        if re.fullmatch(r"\d+", tag.partition("/")[0]):  # clip:ViT-B/16, as in the paper
            guess = f"{model_name}-{tag.partition('/')[0]}"
        similar = {n.lower(): n for n in list_models()}.get(guess.lower().replace("_", "-"))
        if similar and similar != model_name:
            raise nearest("CLIP model", model_name, list_models(), similar if guess == model_name else _full(similar))
        raise nearest("CLIP model", model_name, list_models())
    tags = list_pretrained_tags_by_model(model_name)
    if not tag:
        raise RequestError(
            f"{name!r} has no tag (did you mean {_full(model_name)!r}?); "
            f"tags of {model_name}: {listed(tags, LISTED) or 'none'}"
        )
    if tag not in tags:
        raise nearest(f"tag of {model_name}", tag, tags)
    return model_name, tag


def _full(model_name: str) -> str:
    """The name of a model with its first tag."""
    return f"clip:{model_name}/{next(iter(list_pretrained_tags_by_model(model_name)), 'TAG')}"


def _quick_gelu(name: str, model_name: str, origin: str, stored: dict[str, Tensor], tagged: bool) -> bool:
    """Whether the model has QuickGELU. Raises RequestError if the file was trained with what the model cannot have."""
    told = quick_gelu(origin, stored)
    if told is None:
        return tagged
    built_in = bool((get_model_config(model_name) or {}).get("quick_gelu"))
    if built_in and not told:
        raise RequestError(f"{origin} was trained with GELU, and {name} has QuickGELU: use another model")
    if told != (tagged or built_in):
        say(f"{origin} was trained with {'Quick' * told}GELU, which is used; the tag of {name} has the other one")
    return told


def _resized(stored: dict[str, Tensor], clip: Any) -> dict[str, Tensor]:
    """The weights with image positions resampled to the model's grid, as open_clip does."""
    key = "visual.positional_embedding"
    before = stored.get(key)
    with suppress(RuntimeError):  # no square grid: `load_into` raises the error about the shape
        resize_pos_embed(stored, clip)
    if before is not None and stored[key].shape != before.shape:
        old, new = (f"{round((len(p) - 1) ** 0.5)}" for p in (before, stored[key]))
        say(f"the weights' positions are resampled from {old}x{old} patches to {new}x{new}")
    return stored


def _image_tower(name: str, visual: Any, pixels: InputSpec) -> Tower:
    """The tower of open_clip's image model. Raises RequestError for unsupported kinds."""
    if isinstance(visual, VisionTransformer):
        return ClipVisionTower(visual, pixels)
    out_dim = getattr(visual, "output_dim", None)
    if out_dim is None:
        raise RequestError(f"{name} has an image tower of an unsupported kind, {type(visual).__name__}")
    return OpaqueTower(visual, pixels, out_dim)


def require_library_features(name: str, clip: Any, image: Tower, text: TextTower) -> None:
    """Raises RequestError if the towers' features of an image and a text are not those of open_clip's own forward."""
    clip.eval()
    size = image.pixels.size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    texts = ["a photo of a cat."]
    with torch.no_grad():
        if not isinstance(image, OpaqueTower):  # it calls the library's own forward
            require_equal(name, "image", image(pixels), clip.encode_image(pixels))
        require_equal(name, "text", text(texts), clip.encode_text(text.tokenizer(texts)))


def _require_supported(name: str, model_name: str) -> None:
    """Raises RequestError, before any download, for models whose image or text tower cannot be used."""
    shape = get_model_config(model_name) or {}
    if "hf_model_name" in shape.get("text_cfg", {}):
        raise RequestError(f"{name} has a text tower of Hugging Face; text towers are open_clip's own transformers")
    with _without_warnings():
        clip: Any = create_model(model_name, pretrained=None, load_weights=False, pretrained_text=False, device="meta")
    _image_tower(name, clip.visual, InputSpec(32))
    require_text_model(clip)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without open_clip's warning that a model has random weights, when they are not used or replaced at once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _require_size(name: str, model_name: str, image_size: int) -> None:
    """Raises RequestError unless the image tower is open_clip's own transformer and can have that size."""
    vision = get_model_config(model_name)["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision["layers"], int):
        raise RequestError(f"{name} takes images of one size only: its image tower is not open_clip's own transformer")
    require_multiple(name, image_size, vision["patch_size"])
