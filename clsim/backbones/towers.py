"""Towers: pretrained transformers with one interface, and five places (hooks) at which a tuner can change them.

A tower has the library's weights but its own short forward code, block by block, so that tuners can change the embedded
patches, the tokens entering a block, its keys and values, the output of its branches, and its weights. Two things make
it faster than the library's forward. Attention is computed in the way that is faster (`attention`). And the last block
computes only the tokens that are read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from clsim.data.transforms import InputSpec

Read = slice | Tensor  # which tokens: the same for all rows, or (B,) one position for each row
ALL = slice(None)
# Of the code in this folder that computes features. To be raised with every change of their last bits: a feature bank
# has the features of one version.
ARITHMETIC = 2


class TunerHooks:
    """What a tuner may change in a tower. This class changes nothing; tuners override the methods that they need.

    `block` counts from 0. Added tokens are appended after the image's own tokens, so that pooling does not read them.
    Their position has no other effect: attention without a mask does not depend on the order of its tokens.
    """

    def for_pass(self) -> "TunerHooks":
        """The hooks of one forward pass; values that all blocks use can be computed here once."""
        return self

    def patches(self, tokens: Tensor) -> Tensor:
        """(B,N,D) embedded patches of images, before class token and positions are added -> the same shape."""
        return tokens

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        """(B,N,D) tokens before a block -> the block's input tokens, of any number."""
        return tokens

    def keys_values(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B,N,D) keys and values after their projection -> those used in attention; added ones come first."""
        return keys, values

    def branch(self, block: int, name: str, x: Tensor, out: Tensor) -> Tensor:
        """(B,R,D) output of the "attention" or "mlp" branch for the tokens `x` -> the residual to add to them."""
        return out

    def linear(
        self, block: int, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        """The projection "qkv", "proj", "fc1" or "fc2" of (B,N,in) inputs; only the output features `rows`."""
        return nn.functional.linear(x, weight[rows], None if bias is None else bias[rows])

    def norm(self, block: int, name: str, x: Tensor, module: nn.Module) -> Tensor:
        """The normalisation "norm1" or "norm2" of a block, or "norm", the last one, with block number `depth`."""
        normed: Tensor = module(x)
        return normed


PLAIN = TunerHooks()
Sites = TunerHooks  # the old name


@dataclass(frozen=True)
class BlockPaths:
    """Paths of the modules inside a library's block; projections as weight and bias."""

    norm1: str
    norm2: str
    scale1: str
    scale2: str
    act: str
    linears: dict[str, tuple[str, str]]


def linear_names(**paths: str) -> dict[str, tuple[str, str]]:
    """Modules' paths -> paths of their weights and biases."""
    return {name: (f"{path}.weight", f"{path}.bias") for name, path in paths.items()}


@dataclass(frozen=True)
class Block:
    """A library's pre-norm block with common names. It has no weights of its own."""

    block: nn.Module
    heads: int
    names: BlockPaths

    def part(self, name: str) -> Any:
        """The module in the block with this name in `names`."""
        return attrgetter(getattr(self.names, name))(self.block)

    def weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) of "qkv", "proj", "fc1" or "fc2"."""
        found: tuple[Tensor, Tensor | None] = attrgetter(*self.names.linears[name])(self.block)
        return found

    def inner_norm(self, out: Tensor) -> Tensor:
        """(B,R,inner) result of attention, normalised if the block does so before "proj"."""
        norm: nn.Module | None = getattr(self.block.attn, "norm", None)
        normed: Tensor = out if norm is None else norm(out)
        return normed

    def qk_norms(self) -> tuple[nn.Module | None, nn.Module | None]:
        """Normalisations of queries and keys, separate for each head; None if there are none."""
        attention: Any = self.block.attn
        return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


class Tower(nn.Module):
    """A transformer as `embed(inputs) -> tokens`, `encode(tokens) -> tokens` and `pool(tokens) -> features`.

    A tower stays in evaluation mode.
    """

    pixels: InputSpec  # how images are prepared for an image tower
    layers: Sequence[Block]
    width: int  # features of a token
    out_dim: int  # features of an image or a text

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation after the last block."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of an image along its height and its width."""
        raise NotImplementedError

    @property
    def first_position(self) -> Tensor:
        """(1,1,D) position embedding of an image's class token."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Blocks."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.layers[0].block.parameters()).dtype

    def train(self, mode: bool = True) -> "Tower":
        """Stay in evaluation mode: with batch statistics or drop-out, features would depend on more than the image."""
        return super().train(False)

    def embed(self, inputs: Tensor) -> Tensor:
        """Images or token ids -> (B,N,D) tokens."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """(B,N,D) encoded tokens -> (B,E) features."""
        raise NotImplementedError

    def about(self) -> str:
        """What the fingerprint includes in addition to the weights."""
        return type(self).__name__

    def fingerprint(self) -> str:
        """A hash of the weights, their types and names, and the expected inputs."""
        digest = hashlib.blake2b(self.about().encode(), digest_size=16)
        for name, tensor in self.state_dict().items():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def encode(self, tokens: Tensor, read: Read = ALL, sites: TunerHooks = PLAIN, mask: Tensor | None = None) -> Tensor:
        """(B,N,D) tokens through every block and the last norm -> those in `read`, (B,R,D).

        `mask` (N,N) is added to the attention weights before their softmax.
        """
        sites = sites.for_pass()
        *earlier, last = range(self.depth)
        for i in earlier:
            tokens = run_layer(i, self.layers[i], sites.enter(i, tokens), ALL, sites, mask)
        tokens = run_layer(last, self.layers[last], sites.enter(last, tokens), read, sites, mask)
        return sites.norm(self.depth, "norm", tokens, self.last_norm)


def run_layer(
    i: int, layer: Block, tokens: Tensor, read: Read = ALL, sites: TunerHooks = PLAIN, mask: Tensor | None = None
) -> Tensor:
    """Block `i` on (B,N,D) tokens -> the tokens in `read`, (B,R,D)."""
    x = pick(tokens, read)
    out = attend(i, layer, sites.norm(i, "norm1", tokens, layer.part("norm1")), read, sites, mask)
    x = x + sites.branch(i, "attention", x, layer.part("scale1")(out))
    out = feed_forward(i, layer, sites.norm(i, "norm2", x, layer.part("norm2")), sites)
    return x + sites.branch(i, "mlp", x, layer.part("scale2")(out))


def feed_forward(i: int, layer: Block, x: Tensor, sites: TunerHooks) -> Tensor:
    """The block's two-layer network on (B,R,D) tokens; another kind of network runs unchanged, without the hooks."""
    if "fc1" not in layer.names.linears:
        mlp: Any = layer.block.mlp
        out: Tensor = mlp(x)
        return out
    hidden = layer.part("act")(sites.linear(i, "fc1", x, *layer.weights("fc1")))
    return sites.linear(i, "fc2", hidden, *layer.weights("fc2"))


def attend(
    i: int, layer: Block, x: Tensor, read: Read = ALL, sites: TunerHooks = PLAIN, mask: Tensor | None = None
) -> Tensor:
    """Self-attention over (B,N,D) tokens, with queries from the tokens in `read` -> (B,R,D)."""
    weight, bias = layer.weights("qkv")
    inner = len(weight) // 3
    if isinstance(read, slice) and read == ALL:
        queries, keys, values = sites.linear(i, "qkv", x, weight, bias).chunk(3, dim=-1)
    else:
        # contiguous: with a strided input the matrix product copies its weights once per image
        queries = sites.linear(i, "qkv", pick(x, read).contiguous(), weight, bias, slice(0, inner))
        keys, values = sites.linear(i, "qkv", x, weight, bias, slice(inner, None)).chunk(2, dim=-1)
    keys, values = sites.keys_values(i, keys, values)

    def split(part: Tensor) -> Tensor:
        heads: Tensor = part.unflatten(-1, (layer.heads, -1))
        return heads.transpose(1, 2)

    q_norm, k_norm = layer.qk_norms()
    q, k = (part if norm is None else norm(part) for part, norm in ((split(queries), q_norm), (split(keys), k_norm)))
    visible = None if mask is None else mask_for(mask, read, keys.shape[1])
    out = attention(q, k, split(values), visible).transpose(1, 2).flatten(2)
    return sites.linear(i, "proj", layer.inner_norm(out), *layer.weights("proj"))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,H,R,d) queries, (B,H,N,d) keys and values -> (B,H,R,d); `mask` is added to the weights before their softmax.

    On CPUs torch's fused kernel is faster, except for gradients in 16 bits: there it takes 2 to 5 times as long.
    On CUDA it is always used: it keeps no (R,N) weights in memory, and is deterministic where torch is asked to be.
    """
    learned = torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v))
    slow = q.device.type == "cpu" and learned and v.element_size() == 2
    if q.device.type in ("cpu", "cuda") and not slow:
        added = None if mask is None else mask.to(q.dtype)
        return nn.functional.scaled_dot_product_attention(q, k, v, added)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out


def mask_for(mask: Tensor, read: Read, num_keys: int) -> Tensor:
    """(N,N) mask -> (R, num_keys) or (B,1,1,num_keys), for the queries in `read`; added keys are visible to all."""
    rows = mask[read] if isinstance(read, slice) else mask[read][:, None, None]
    return nn.functional.pad(rows, (num_keys - mask.shape[1], 0))


def pick(tokens: Tensor, read: Read) -> Tensor:
    """(B,N,D) tokens -> those in `read`, (B,R,D)."""
    if isinstance(read, slice):
        return tokens[:, read]
    return tokens[torch.arange(len(tokens), device=tokens.device), read][:, None]
