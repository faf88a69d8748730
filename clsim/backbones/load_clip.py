"""CLIP backbones: the bundled ones, and open_clip's models by name and tag."""

import gzip
import io
from contextlib import suppress
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

from clsim.backbones.clip import ClipVisionTower, OpaqueTower, TextTower
from clsim.backbones.stored import WEIGHTS, load_into, no_weights, read_weights, require_multiple
from clsim.backbones.towers import Tower
from clsim.data import captions, glyphs
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError, unknown

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
        load_into(clip, read_weights(file), name)
    return small_towers(clip, shape.image_size)


def _open_clip(name: str, weights: Path | None, image_size: int | None) -> tuple[Tower, TextTower]:
    """One of open_clip's models; the tag selects the weights, and with them QuickGELU or GELU."""
    model_name, _, tag = name.removeprefix("clip:").partition("/")
    if model_name not in list_models():
        raise unknown("CLIP model", model_name, list_models())
    if tag not in list_pretrained_tags_by_model(model_name):
        raise unknown(f"tag of {model_name}", tag, list_pretrained_tags_by_model(model_name))
    if image_size is not None:
        _require_size(name, model_name, image_size)
    about = get_pretrained_cfg(model_name, tag)
    try:
        clip: Any = create_model(
            model_name,
            pretrained=tag if weights is None else None,
            force_quick_gelu=bool(about.get("quick_gelu")),
            force_image_size=image_size,  # resamples the position embeddings, too
            load_weights=weights is None,
            pretrained_text=False,
            require_pretrained=weights is None,
        )
        tokenizer = get_tokenizer(model_name)
    except Exception as error:
        raise no_weights(name, error) from error
    if weights is not None:
        stored = read_weights(weights)
        if image_size is not None:
            with suppress(RuntimeError):  # no square grid: `load_into` raises the error about the shape
                resize_pos_embed(stored, clip)
        load_into(clip, stored, str(weights))
    size = clip.visual.image_size
    side = size if isinstance(size, int) else size[0]
    pixels = InputSpec(side, tuple(about["mean"]), tuple(about["std"]), crop=1.0)
    if isinstance(clip.visual, VisionTransformer):
        return ClipVisionTower(clip.visual, pixels), TextTower(clip, tokenizer)
    out_dim = getattr(clip.visual, "output_dim", None)
    if out_dim is None:
        raise RequestError(f"{name} has an image tower of an unsupported kind, {type(clip.visual).__name__}")
    return OpaqueTower(clip.visual, pixels, out_dim), TextTower(clip, tokenizer)


def _require_size(name: str, model_name: str, image_size: int) -> None:
    """Raises RequestError unless the image tower is open_clip's own transformer and can have that size."""
    vision = get_model_config(model_name)["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision["layers"], int):
        raise RequestError(f"{name} takes images of one size only: its image tower is not open_clip's own transformer")
    require_multiple(name, image_size, vision["patch_size"])
