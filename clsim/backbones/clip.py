"""CLIP (Radford et al. 2021, arXiv:2103.00020) as two towers, from open_clip's models."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from clsim.backbones.towers import PLAIN, Block, BlockPaths, Read, Tower, TunerHooks, linear_names
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError

OPEN_CLIP = BlockPaths(
    norm1="ln_1",
    norm2="ln_2",
    scale1="ls_1",
    scale2="ls_2",
    act="mlp.gelu",
    linears={"qkv": ("attn.in_proj_weight", "attn.in_proj_bias")}
    | linear_names(proj="attn.out_proj", fc1="mlp.c_fc", fc2="mlp.c_proj"),
)


def clip_layer(block: nn.Module) -> Block:
    """An open_clip ResidualAttentionBlock as a Block of a tower. Raises RequestError for other kinds of blocks."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        raise RequestError(f"towers are made of open_clip's plain ResidualAttentionBlock, not {type(block).__name__}")
    attention: Any = block.attn
    return Block(block, attention.num_heads, OPEN_CLIP)


class ClipVisionTower(Tower):
    """An open_clip VisionTransformer as a tower; features are projected into the space shared with the texts."""

    def __init__(self, visual: Any, pixels: InputSpec) -> None:
        """Raises RequestError for unsupported blocks and pooling."""
        super().__init__()
        if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
            raise RequestError("CLIP's image towers pool by class token or average, not by attention")
        self.layers = [clip_layer(block) for block in visual.transformer.resblocks]
        self.visual = visual
        self.pixels = pixels
        self.width = visual.conv1.out_channels
        self.out_dim = visual.output_dim

    @property
    def last_norm(self) -> nn.Module:
        norm: nn.Module = self.visual.ln_post
        return nn.Identity() if self.visual.final_ln_after_pool else norm  # some models normalise after pooling

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        height, width = self.visual.grid_size
        return height, width

    @property
    def first_position(self) -> Tensor:
        """(1,1,D) position embedding of the class token."""
        positions: Tensor = self.visual.positional_embedding
        return positions[None, :1]

    def about(self) -> str:
        return repr(self.pixels)

    def embed(self, inputs: Tensor, sites: TunerHooks = PLAIN) -> Tensor:
        """(B,3,S,S) normalised images -> (B,N,D) tokens: the class token, then patches."""
        visual = self.visual
        patches = sites.patches(visual.conv1(inputs.to(self.dtype)).flatten(2).transpose(1, 2))
        first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        embedded: Tensor = visual.ln_pre(tokens)
        return embedded

    def pool(self, tokens: Tensor) -> Tensor:
        """(B,N,D) encoded tokens -> (B,E) features."""
        pooled = tokens[:, 0] if self.visual.pool_type == "tok" else tokens[:, 1:].mean(dim=1)
        if self.visual.final_ln_after_pool:
            pooled = self.visual.ln_post(pooled)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def forward(self, images: Tensor, sites: TunerHooks = PLAIN) -> Tensor:
        """(B,3,S,S) normalised images -> (B,E) features; tokens added by `sites` are not pooled."""
        tokens = self.embed(images, sites)
        read = slice(0, 1) if self.visual.pool_type == "tok" else slice(0, tokens.shape[1])
        return self.pool(self.encode(tokens, read, sites))


class OpaqueTower(Tower):
    """An image model that is not a transformer (CLIP's ResNets): it has features, but cannot be tuned."""

    def __init__(self, visual: Any, pixels: InputSpec, out_dim: int) -> None:
        super().__init__()
        self.layers = []
        self.visual = visual
        self.pixels = pixels
        self.out_dim = out_dim

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        weight: Tensor = next(self.visual.parameters())
        return weight.dtype

    def about(self) -> str:
        return repr(self.pixels)

    def encode(
        self, tokens: Tensor, read: Read = slice(None), sites: TunerHooks = PLAIN, mask: Tensor | None = None
    ) -> Tensor:
        """Raises RequestError: there are no blocks."""
        raise RequestError(
            f"a {type(self.visual).__name__} has no tokens to tune; it works with methods that read features"
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,S,S) normalised images -> (B,E) features."""
        features: Tensor = self.visual(images.to(self.dtype))
        return features


class TextTower(Tower):
    """CLIP's causal text transformer: from token ids, or from the embeddings of a prompt, to features.

    Nothing after the end-of-text token is read, so sequences are cut there. The features are equal to those of the
    full length, which open_clip computes.
    """

    def __init__(self, clip: Any, tokenizer: Callable[..., Tensor]) -> None:
        """Raises RequestError for text models that are not causal or do not read the feature at the end of the text."""
        super().__init__()
        text, pooling, self.layers = require_text_model(clip)
        self.transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.positions = text.positional_embedding
        self.ln_final = text.ln_final
        self.projection = text.text_projection
        self.logit_scale = clip.logit_scale.exp().item()  # a number: in bfloat16 it could be 99 in place of 100
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.eos_id = int(getattr(text, "eos_id", getattr(clip, "text_eos_id", 0)))
        self.width = text.token_embedding.weight.shape[1]
        self.context_length = text.context_length
        self.out_dim = self.width if self.projection is None else _out_features(self.projection)

    @property
    def last_norm(self) -> nn.Module:
        norm: nn.Module = self.ln_final
        return norm

    def about(self) -> str:
        return f"{self.pooling} {self.logit_scale}"

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> (K,N) ids, cut after the longest text's end, and (K,) positions of each end-of-text token.

        Raises RequestError for a text that does not fit into the context.
        """
        # tokenize with a longer context, to find texts that would be cut
        ids = self.tokenizer(list(texts), context_length=4 * self.context_length)
        ends = ids.argmax(dim=1) if self.pooling == "argmax" else ids.eq(self.eos_id).int().argmax(dim=1)
        longest = int(ends.max()) + 1
        if longest > self.context_length:
            text = texts[int(ends.argmax())]
            raise RequestError(f"{text!r} has {longest} tokens; the text tower takes {self.context_length}")
        device = self.token_embedding.weight.device
        return ids[:, :longest].to(device), ends.to(device)

    def embed(self, inputs: Tensor) -> Tensor:
        """(K,N) token ids -> (K,N,D) embeddings, without positions."""
        embeddings: Tensor = self.token_embedding(inputs)
        return embeddings

    def features(self, embeddings: Tensor, ends: Tensor, sites: TunerHooks = PLAIN, start: int = 0) -> Tensor:
        """(K,N,D) embeddings of tokens from position `start` on -> (K,E) features, read at (K,) `ends` of the N."""
        length = embeddings.shape[1]
        x = (embeddings + self.positions[start : start + length]).to(self.dtype)
        mask = torch.full((length, length), -torch.inf, device=x.device).triu(1)
        pooled = self.encode(x, ends, sites, mask)[:, 0]
        if self.projection is None:
            return pooled
        linear = isinstance(self.projection, nn.Linear)
        projected: Tensor = self.projection(pooled) if linear else pooled @ self.projection
        return projected

    def forward(self, texts: Sequence[str], sites: TunerHooks = PLAIN) -> Tensor:
        """K texts -> (K,E) features, not normalised."""
        ids, ends = self.tokens(texts)
        return self.features(self.embed(ids), ends, sites)


def require_text_model(clip: Any) -> tuple[Any, str, list[Block]]:
    """The text model of an open_clip model, where it reads its feature, and its blocks.

    Raises RequestError for models that are not causal or do not read the feature at the end of the text.
    """
    text = clip.text if hasattr(clip, "text") else clip
    pooling = getattr(text, "pool_type", getattr(clip, "text_pool_type", None))
    if pooling not in ("argmax", "eos") or getattr(text, "attn_mask", None) is None:
        raise RequestError("text towers are causal and read their feature at the end of the text; this one differs")
    if getattr(text, "cls_emb", None) is not None:
        raise RequestError("text towers with a class token are not supported")
    return text, str(pooling), [clip_layer(block) for block in text.transformer.resblocks]


def _out_features(projection: Any) -> int:
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
