"""Image towers: timm's VisionTransformer as embed, encode and pool."""

import hashlib

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from clsim.data.transforms import Pixels
from clsim.errors import RequestError


class ConvStem(nn.Module):
    """Three 3x3 convolutions to a grid of a quarter of the side, in place of square patches.

    Early convolutions make small transformers learn far faster (Xiao et al. 2021, arXiv:2106.14881).
    Takes the arguments that timm gives an `embed_layer`. (B,3,H,W) -> (B, H/4 * W/4, D).
    """

    def __init__(self, img_size: int = 32, in_chans: int = 3, embed_dim: int = 192, **_unused: object) -> None:
        super().__init__()
        self.grid_size = (img_size // 4, img_size // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = (in_chans, embed_dim // 4, embed_dim // 2, embed_dim)
        layers: list[nn.Module] = []
        for i, stride in enumerate((1, 2, 2)):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def feat_ratio(self) -> int:
        """Pixels of the image to a side of one token."""
        return 4

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.layers(images)
        return grid.flatten(2).transpose(1, 2)


def micro_vit(num_classes: int = 0) -> VisionTransformer:
    """vit_micro: 32x32 images, 8x8 tokens of width 192 from a convolutional stem, 6 blocks, 2.9 M parameters."""
    return VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=192,
        depth=6,
        num_heads=3,
        num_classes=num_classes,
        embed_layer=ConvStem,
    )


def nano_vit() -> VisionTransformer:
    """vit_nano: 16x16 images, 16 tokens of width 32, 2 blocks; small enough for every test."""
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0)


class VisionTower(nn.Module):
    """A timm VisionTransformer seen as `embed(images) -> tokens`, `encode(tokens)` and `pool(tokens) -> features`.

    Equal to the library's own forward, with two differences in speed: attention is two plain matrix products,
    which on CPUs train faster than the fused kernel at these lengths, and the last block computes only
    the tokens that somebody reads.
    """

    vit: VisionTransformer
    pixels: Pixels

    def __init__(self, vit: VisionTransformer, pixels: Pixels) -> None:
        """Raises RequestError for block kinds whose parts are not known to stand where a plain Block has them."""
        super().__init__()
        for block in vit.blocks:
            if type(block) is not Block or type(block.attn) is not Attention or block.attn.gate is not None:
                raise RequestError(
                    f"towers are made of timm's plain Block with Attention, not {type(block).__name__} "
                    f"with {type(getattr(block, 'attn', None)).__name__}"
                )
        if vit.attn_pool is not None or vit.global_pool not in ("token", "avg"):
            raise RequestError(f"towers pool by class token or average, not {vit.global_pool!r}")
        vit.reset_classifier(0)
        self.vit = vit
        self.pixels = pixels

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.vit.embed_dim

    @property
    def out_dim(self) -> int:
        """Features of an image."""
        return self.vit.embed_dim

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.vit.blocks.parameters()).dtype

    def train(self, mode: bool = True) -> "VisionTower":
        """Stay in evaluation mode: batch statistics and drop-out would let the images of a batch see each other."""
        return super().train(False)

    def fingerprint(self) -> str:
        """A hash of the weights, their types and names, and the pixels they expect."""
        digest = hashlib.blake2b(repr(self.pixels).encode(), digest_size=16)
        for name, tensor in self.vit.state_dict().items():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def embed(self, images: Tensor) -> Tensor:
        """(B,3,S,S) normalised images -> (B,N,D) tokens: prefix tokens (class, registers), then patches."""
        tokens = self.vit.patch_embed(images.to(self.dtype))
        return self.vit.norm_pre(self.vit._pos_embed(tokens))  # type: ignore[no-any-return]

    def encode(self, tokens: Tensor, read: slice = slice(None)) -> Tensor:
        """(B,N,D) tokens through every block and the last norm -> those in `read`, (B,R,D)."""
        *blocks, last = self.vit.blocks
        for block in blocks:
            tokens = run_block(block, tokens)  # type: ignore[arg-type]
        return self.vit.norm(run_block(last, tokens, read))  # type: ignore[arg-type, no-any-return]

    def pool(self, tokens: Tensor) -> Tensor:
        """(B,N,D) encoded tokens -> (B,D) features."""
        return self.vit.fc_norm(self.vit.pool(tokens))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,S,S) normalised images -> (B,D) pooled features."""
        tokens = self.embed(images)
        if self.vit.global_pool == "token":
            return self.vit.fc_norm(self.encode(tokens, slice(0, 1))[:, 0])  # type: ignore[no-any-return]
        return self.pool(self.encode(tokens))


def run_block(block: Block, tokens: Tensor, read: slice = slice(None)) -> Tensor:
    """One pre-norm transformer block on (B,N,D) tokens -> the tokens in `read`, (B,R,D)."""
    x = tokens[:, read]
    x = x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(tokens), read)))  # type: ignore[arg-type]
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def attend(attention: Attention, x: Tensor, read: slice = slice(None)) -> Tensor:
    """Self-attention over (B,N,D) tokens, with queries from the tokens in `read` -> (B,R,D)."""
    batch = len(x)
    heads, head_dim, inner = attention.num_heads, attention.head_dim, attention.attn_dim
    if read == slice(None):
        queries, keys, values = attention.qkv(x).chunk(3, dim=-1)
    else:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        bias_q, bias_kv = (None, None) if bias is None else (bias[:inner], bias[inner:])
        # contiguous: for a strided input the product copies its weights once per image
        queries = nn.functional.linear(x[:, read].contiguous(), weight[:inner], bias_q)
        keys, values = nn.functional.linear(x, weight[inner:], bias_kv).chunk(2, dim=-1)

    def split(part: Tensor) -> Tensor:
        return part.reshape(batch, -1, heads, head_dim).transpose(1, 2)

    q, k = attention.q_norm(split(queries)), attention.k_norm(split(keys))
    weights = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    out = (attention.attn_drop(weights) @ split(values)).transpose(1, 2).reshape(batch, -1, inner)
    return attention.proj_drop(attention.proj(attention.norm(out)))  # type: ignore[no-any-return]
