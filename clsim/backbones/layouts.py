"""The layouts in which weights are published, converted to the names of timm and open_clip."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clsim.backbones.stored import say
from clsim.errors import RequestError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Weights = dict[str, Tensor]

# wrappers that training code puts around a backbone; of several copies the first in this order is used
WRAPPERS: tuple[str, ...] = (
    "module",
    "_orig_mod",
    "model",
    "backbone",
    "encoder",
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
)
WRAPPERS += ("net", "network", "trunk", "visual", "image_encoder", "encoder_q", "base_encoder", "clip", "clip_model")
WRAPPERS += ("opt", "target", "img", "ema_model", "model_ema", "ema", "teacher", "student", "momentum_encoder")
WRAPPERS += ("encoder_k", "params")
# the tensor by which each layout is recognised: the embedding of patches
HF_VIT = "embeddings.patch_embeddings.projection.weight"
HF_CLIP = "vision_model.embeddings.patch_embedding.weight"
OPEN_CLIP = "visual.conv1.weight"
GOOGLE = "embedding/kernel"
ASIDE = re.compile(
    r"opt/(?!target/)|(text|visual\.head)\.|logit_(scale|bias)$|(.*\.)?\w*(head|predictor)\.|(criterion|loss)\b"
)

_HF_VIT = [  # Hugging Face's ViT and DINOv2 -> timm's and Meta's names
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
]
_HF_CLIP = [  # Hugging Face's CLIP -> open_clip's names
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def unwrapped(weights: Weights, anchor: str) -> Weights:
    """The weights without the wrappers before their names; `anchor`: a name that the backbone's own layout has.

    Of several copies (student and teacher) one is used. Other tensors keep their names, so that they are reported.
    """
    for known in (anchor, HF_VIT, HF_CLIP, OPEN_CLIP, GOOGLE):
        ends = [name.removesuffix(known) for name in weights if name.endswith(known)]
        prefixes = sorted((p for p in ends if _wrappers(p) is not None), key=lambda p: _wrappers(p) or [])
        if not prefixes:
            continue
        chosen = prefixes[0]
        if not chosen:
            return weights
        if len(prefixes) > 1:
            say(f"the weights {chosen}* are used, and not {', '.join(f'{p}*' for p in prefixes[1:])}")
        outer = {p.split(".")[0] + "." for p in prefixes[1:]} - {chosen.split(".")[0] + "."}
        others = (*prefixes[1:], *outer)
        kept = {n.removeprefix(chosen): t for n, t in weights.items() if n.startswith(chosen)}
        rest = {n: t for n, t in weights.items() if not n.startswith((chosen, *others)) and not ASIDE.match(n)}
        return kept | rest
    return weights


def _wrappers(prefix: str) -> list[int] | None:
    """The ranks of a prefix's wrappers, the worst first; None if it has another word."""
    words = [word for word in re.split(r"[./]", prefix) if word]
    if not all(word in WRAPPERS for word in words):
        return None
    return sorted((WRAPPERS.index(word) for word in words), reverse=True)


def renamed(weights: Weights, rules: list[tuple[str, str]]) -> Weights:
    """Every rule applied to every name, in this order."""
    found = {}
    for name, tensor in weights.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def joined(weights: Weights, parts: tuple[str, str, str], together: str) -> Weights:
    """Queries', keys' and values' projections as one: `parts` are their names, e.g. "q.", `together` the one's."""
    found = {}
    for name, tensor in weights.items():
        middle = f".attn.{parts[0]}"
        if middle in name:
            names = [name.replace(middle, f".attn.{part}") for part in parts]
            if all(n in weights for n in names):
                found[name.replace(middle, f".attn.{together}")] = torch.cat([weights[n] for n in names])
                continue
        first = {name.replace(f".attn.{part}", middle) for part in parts[1:] if f".attn.{part}" in name}
        if not first & set(weights):
            found[name] = tensor
    return found


# timm


def for_timm(weights: Weights, vit: "VisionTransformer", origin: str) -> Weights:
    """Weights of any known layout with timm's names, their positions resampled to the grid of `vit`.

    Raises RequestError for patches of another size.
    """
    own = next(name for name in vit.state_dict() if name.startswith("patch_embed.") and name.endswith("weight"))
    weights = unwrapped(weights, own)
    if GOOGLE in weights:
        weights = from_google(weights)
    if HF_VIT in weights:
        weights = joined(renamed(weights, _HF_VIT), ("query.", "key.", "value."), "qkv.")
    if HF_CLIP in weights:
        weights = from_hf_clip(weights)
    clip = OPEN_CLIP in weights and "visual.class_embedding" in weights
    if clip:
        require_gelu(vit, origin, weights)
    if own == "patch_embed.proj.weight":
        weights = _with_timms_filter(weights, vit, origin, clip)
    return resampled(weights, vit)


def _with_timms_filter(weights: Weights, vit: "VisionTransformer", origin: str, clip: bool) -> Weights:
    """timm's own conversion of OpenAI's, Meta's and older layouts, without its silent change of sizes."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    blocks = re.compile(r"^blocks\.\d+\.(\d+)\.")  # Meta's chunks of blocks; the second number counts all blocks
    weights = {blocks.sub(r"blocks.\1.", name): tensor for name, tensor in weights.items()}
    patches = weights.get(OPEN_CLIP if clip else "patch_embed.proj.weight")
    proj: Any = vit.patch_embed.proj
    if patches is not None and patches.ndim == 4 and patches.shape[-2:] != proj.weight.shape[-2:]:
        height, width = patches.shape[-2:]
        here = tuple(proj.weight.shape[-2:])
        raise RequestError(
            f"the weights of {origin} do not fit this backbone: the file has another shape for "
            f"'patch_embed.proj.weight' (patches of {height}x{width} pixels, not {here[0]}x{here[1]})"
        )
    meta = any(name == "register_tokens" or ".mlp.w12." in name for name in weights)
    if meta:
        weights = weights | {"mask_token": torch.zeros(1)}  # by this timm recognises Meta's layout
    old = meta or clip or any(name == "mask_token" or re.search(r"\.gamma_[12]$", name) for name in weights)
    if not old:
        return weights
    unsized: Any = SimpleNamespace(pos_embed=None, patch_embed=vit.patch_embed)  # sizes are changed by `resampled`
    return checkpoint_filter_fn(dict(weights), unsized, adapt_layer_scale=True)


def require_gelu(vit: "VisionTransformer", origin: str, weights: Weights) -> None:
    """Raises RequestError if a CLIP was trained with QuickGELU and the model has GELU, or the other way round."""
    act = type(cast(Any, vit.blocks[0]).mlp.act).__name__
    told = quick_gelu(origin, weights)
    if told is not None and told != act.startswith("QuickGELU"):
        raise RequestError(
            f"{origin} has weights of a CLIP that was trained with {'Quick' * told}GELU; this backbone has {act}: "
            f"use timm's model with{'' if told else 'out'} 'clip_quickgelu' in its name"
        )


def resampled(weights: Weights, vit: "VisionTransformer") -> Weights:
    """Weights of a timm model for square images, with their position embedding resampled to the grid of `vit`."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    stored = weights.get("pos_embed")
    if stored is None or stored.ndim != 3 or vit.pos_embed is None:
        return weights
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens  # tokens that have a position but are not in the grid
    patches = stored.shape[1] - prefix
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return weights  # of another model; `load_into` raises the error about its shape
    grid = list(vit.patch_embed.grid_size)
    if stored.shape[1] != vit.pos_embed.shape[1] and stored.shape[2] == vit.pos_embed.shape[2]:
        side = math.isqrt(patches)
        say(f"the weights' positions are resampled from {side}x{side} patches to {grid[0]}x{grid[1]}")
    return weights | {"pos_embed": resample_abs_pos_embed(stored, grid, num_prefix_tokens=prefix)}


def pools_average(weights: Weights) -> bool:
    """Whether these are weights of a ViT fine-tuned with average pooling (MAE), which normalises after pooling."""
    last = {name.rpartition(".")[0].rpartition(".")[2] for name in weights if name.count(".") < 4}
    top = {name for name in weights if re.match(r"^(\w+\.)*norm\.weight$", name) and "blocks." not in name}
    return "fc_norm" in last and not top


def from_google(weights: Weights) -> Weights:
    """Google's names (vision_transformer and big_vision), with slashes -> timm's; others keep their names."""
    stacked = "Transformer/encoderblock/LayerNorm_0/scale" in weights
    big = "pos_embedding" in weights or stacked
    attention, mlp, norm2 = (0, 0, 1) if big else (1, 3, 2)
    top = {"cls": "cls_token", "pos_embedding": "pos_embed", "embedding/bias": "patch_embed.proj.bias"}
    top |= {"Transformer/posembed_input/pos_embedding": "pos_embed"}
    top |= {"Transformer/encoder_norm/scale": "norm.weight", "Transformer/encoder_norm/bias": "norm.bias"}
    found: Weights = {}
    blocks: dict[int, Weights] = {}
    for name, tensor in weights.items():
        match = re.match(r"Transformer/encoderblock(?:_(\d+))?/(.*)", name)
        if match and (match[1] is None) == stacked:
            rows = enumerate(tensor) if stacked else [(int(match[1]), tensor)]
            for i, row in rows:
                blocks.setdefault(i, {})[match[2]] = row
        elif name == GOOGLE:
            found["patch_embed.proj.weight"] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
        else:
            found[top.get(name, name)] = tensor
    for i, block in blocks.items():
        found |= _google_block(f"blocks.{i}.", block, f"MultiHeadDotProductAttention_{attention}/", mlp, norm2)
    return found


def _google_block(start: str, block: Weights, attention: str, mlp: int, norm2: int) -> Weights:
    """One block of Google's layout -> timm's; tensors of another layout keep their names."""
    block = dict(block)
    found: Weights = {}
    for kind in ("kernel", "bias"):
        names = [f"{attention}{part}/{kind}" for part in ("query", "key", "value")]
        if all(name in block for name in names):
            parts = [block.pop(name) for name in names]
            if kind == "kernel":
                found[f"{start}attn.qkv.weight"] = torch.cat([part.flatten(1).T for part in parts])
            else:
                found[f"{start}attn.qkv.bias"] = torch.cat([part.reshape(-1) for part in parts])
    new = {f"{attention}out/": "attn.proj.", f"MlpBlock_{mlp}/Dense_0/": "mlp.fc1.", "LayerNorm_0/": "norm1."}
    new |= {f"MlpBlock_{mlp}/Dense_1/": "mlp.fc2.", f"LayerNorm_{norm2}/": "norm2."}
    for name, tensor in block.items():
        path, _, kind = name.rpartition("/")
        if kind == "kernel":
            tensor = tensor.flatten(0, -2).T
        place = new.get(f"{path}/")
        known = {"kernel": "weight", "scale": "weight", "bias": "bias"}.get(kind)
        found[f"{start}{place}{known}" if place and known else f"{start}{name}"] = tensor
    return found


# open_clip


def for_clip(weights: Weights, clip: torch.nn.Module) -> Weights:
    """Weights of any known layout with open_clip's names."""
    from open_clip.model import convert_to_custom_text_state_dict

    own = next((n for n in clip.state_dict() if n.startswith("visual.") and n.endswith("weight")), OPEN_CLIP)
    weights = unwrapped(weights, OPEN_CLIP if OPEN_CLIP in clip.state_dict() else own)
    if HF_CLIP in weights:
        weights = from_hf_clip(weights)
    if "positional_embedding" in weights and not hasattr(clip, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    scale = weights.get("logit_scale")
    if scale is not None and scale.numel() == 1:
        weights = weights | {"logit_scale": scale.reshape(clip.state_dict()["logit_scale"].shape)}
    return weights


def from_hf_clip(weights: Weights) -> Weights:
    """Hugging Face's CLIP -> open_clip's names; projections are transposed, queries, keys and values joined."""
    weights = renamed(weights, _HF_CLIP)
    for old, new in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        if old in weights:
            weights[new] = weights.pop(old).T
    return joined(weights, ("q.", "k.", "v."), "in_proj_")


def quick_gelu(origin: str, weights: Weights) -> bool | None:
    """Whether weights of a CLIP were trained with QuickGELU; None if neither they nor a configuration says it.

    OpenAI's archives have three numbers that no other layout has. A configuration is the file `open_clip_config.json`
    or Hugging Face's `config.json` in the same folder.
    """
    if {"input_resolution", "context_length", "vocab_size"} <= {name.rpartition(".")[2] for name in weights}:
        return True
    folder = Path(origin).parent
    own, other = _json(folder / "open_clip_config.json"), _json(folder / "config.json")
    model = own.get("model_cfg")
    if isinstance(model, dict):
        return bool(model.get("quick_gelu", False))
    if other.get("model_type") in ("clip", "clip_vision_model"):
        vision = other.get("vision_config", other)
        return isinstance(vision, dict) and vision.get("hidden_act", "quick_gelu") == "quick_gelu"
    return None


def _json(file: Path) -> dict[str, Any]:
    """An object in a file; empty if there is none, or nothing readable."""
    try:
        read = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError):
        read = {}
    return read if isinstance(read, dict) else {}
