"""Image towers from timm, and the networks of the bundled image towers."""

from dataclasses import replace

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, channels_last, nn

from clsim.backbones.towers import PLAIN, Block, BlockPaths, Tower, TunerHooks, linear_names
from clsim.data.transforms import InputSpec
from clsim.errors import RequestError


class ConvStem(nn.Module):
    """Three 3x3 convolutions in place of square patches; the grid has a quarter of the image's side.

    Early convolutions make small transformers learn far faster (Xiao et al. 2021, arXiv:2106.14881).
    It takes the arguments that timm passes to an `embed_layer`. (B,3,H,W) -> (B, H/4 * W/4, D).
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
        """Pixels of the image per side of one token."""
        return 4

    def forward(self, images: Tensor) -> Tensor:
        # with channels last, convolutions are faster on CPUs, and the tokens need no copy
        grid: Tensor = self.layers(images.contiguous(memory_format=channels_last))
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


TIMM = BlockPaths("norm1", "norm2", "ls1", "ls2", "mlp.act", linear_names(qkv="attn.qkv", proj="attn.proj"))
TIMM_MLP = linear_names(fc1="mlp.fc1", fc2="mlp.fc2")


class VisionTower(Tower):
    """A timm VisionTransformer as a tower; its features are equal to those of the library's forward."""

    vit: VisionTransformer

    def __init__(self, vit: VisionTransformer, pixels: InputSpec) -> None:
        """Raises RequestError for kinds of blocks that may not have the structure of a plain Block."""
        super().__init__()
        require_pooling(vit)
        self.layers = [timm_layer(block) for block in vit.blocks]
        vit.reset_classifier(0)
        self.vit = vit
        self.pixels = pixels
        self.width = self.out_dim = vit.embed_dim

    @property
    def last_norm(self) -> nn.Module:
        return self.vit.norm

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        height, width = self.vit.patch_embed.grid_size
        return height, width

    @property
    def first_position(self) -> Tensor:
        """(1,1,D) position embedding of the class token; zeros if it has none (DINOv2 with registers)."""
        positions = self.vit.pos_embed
        if positions is None or self.vit.no_embed_class or not self.vit.has_class_token:
            return next(self.layers[0].block.parameters()).new_zeros(1, 1, self.width)
        return positions[:, :1]

    def about(self) -> str:
        return repr(self.pixels)

    def embed(self, inputs: Tensor, sites: TunerHooks = PLAIN) -> Tensor:
        """(B,3,S,S) normalised images -> (B,N,D) tokens: prefix tokens (class, registers), then patches."""
        patches = sites.patches(self.vit.patch_embed(inputs.to(self.dtype)))
        tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(patches))
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """(B,N,D) encoded tokens -> (B,D) features."""
        pooled: Tensor = self.vit.fc_norm(self.vit.pool(tokens))
        return pooled

    def forward(self, images: Tensor, sites: TunerHooks = PLAIN) -> Tensor:
        """(B,3,S,S) normalised images -> (B,D) pooled features; tokens added by `sites` are not pooled."""
        tokens = self.embed(images, sites)
        if self.vit.global_pool == "token":
            pooled: Tensor = self.vit.fc_norm(self.encode(tokens, slice(0, 1), sites)[:, 0])
            return pooled
        return self.pool(self.encode(tokens, slice(0, tokens.shape[1]), sites))


def require_pooling(vit: VisionTransformer) -> None:
    """Raises RequestError unless the model pools by class token or average."""
    if vit.attn_pool is not None or vit.global_pool not in ("token", "avg"):
        raise RequestError(f"towers pool by class token or average, not {vit.global_pool!r}")


def timm_layer(block: nn.Module) -> Block:
    """A timm Block as a Block of a tower. Raises RequestError for other kinds of blocks."""
    attention = getattr(block, "attn", None)
    if type(block) is not TimmBlock or type(attention) is not Attention or attention.gate is not None:
        raise RequestError(
            f"towers are made of timm's plain Block with Attention, not {type(block).__name__} "
            f"with {type(attention).__name__}"
        )
    plain = type(block.mlp) is Mlp and type(block.mlp.norm) is nn.Identity
    names = replace(TIMM, linears=TIMM.linears | TIMM_MLP) if plain else TIMM
    return Block(block, attention.num_heads, names)
