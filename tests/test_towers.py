"""The four sites: offered at every block; left alone they change nothing, used they change what the tower says."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clsim.backbones import towers
from clsim.backbones.load import load_backbone
from clsim.backbones.towers import TunerHooks, attention, mask_for, pick


@pytest.fixture(scope="module", params=["vit_nano", "clip_nano"])
def tower(request):
    return load_backbone(request.param).image


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Listing(TunerHooks):
    """Notes what it is offered and changes nothing."""

    def __init__(self):
        self.offered = []

    def enter(self, block, tokens):
        self.offered.append((block, "enter"))
        return tokens

    def keys_values(self, block, keys, values):
        self.offered.append((block, "keys_values"))
        return keys, values

    def branch(self, block, name, x, out):
        self.offered.append((block, name))
        assert x.shape == out.shape
        return out

    def linear(self, block, name, x, weight, bias, rows=slice(None)):
        self.offered.append((block, name))
        return super().linear(block, name, x, weight, bias, rows)

    def norm(self, block, name, x, module):
        self.offered.append((block, name))
        return module(x)


@torch.no_grad()
def test_every_site_is_offered_in_order_and_none_changes_anything_by_itself(tower, images):
    sites = Listing()
    assert torch.equal(tower(images, sites), tower(images))
    first = ["enter", "norm1", "qkv", "keys_values", "proj", "attention", "norm2", "fc1", "fc2", "mlp"]
    last = [*first[:3], "qkv", *first[3:]]  # the last block asks for the queries of what is read alone
    assert sites.offered == [*((0, name) for name in first), *((1, name) for name in last), (2, "norm")]


class Tokens(TunerHooks):
    """Puts tokens behind the others at the first block and takes them away at the second."""

    def __init__(self, tokens):
        self.tokens = tokens

    def enter(self, block, tokens):
        if block == 0:
            return torch.cat([tokens, self.tokens.expand(len(tokens), -1, -1)], dim=1)
        return tokens[:, : -self.tokens.shape[1]]


@torch.no_grad()
def test_tokens_that_enter_are_attended_to_and_not_pooled(tower, images):
    added = torch.randn(1, 4, tower.width, generator=torch.Generator().manual_seed(1))
    changed = tower(images, Tokens(added))
    assert changed.shape == tower(images).shape
    assert not torch.allclose(changed, tower(images), atol=1e-4)
    # the same by hand: block 0 on the longer sequence, block 1 on the first tokens
    from clsim.backbones.towers import run_layer

    tokens = torch.cat([tower.embed(images), added.expand(3, -1, -1)], dim=1)
    tokens = run_layer(1, tower.layers[1], run_layer(0, tower.layers[0], tokens)[:, :-4])
    assert torch.allclose(changed, tower.pool(tower.last_norm(tokens)), atol=1e-5)


class Doubled(TunerHooks):
    """Every key and value twice: each is attended to half as much, and nothing changes."""

    def keys_values(self, block, keys, values):
        return torch.cat([keys, keys], dim=1), torch.cat([values, values], dim=1)


class Silent(TunerHooks):
    """Branches say nothing."""

    def branch(self, block, name, x, out):
        return torch.zeros_like(out)


@torch.no_grad()
def test_keys_and_values_may_be_added_and_branches_replaced(tower, images):
    assert torch.allclose(tower(images, Doubled()), tower(images), atol=1e-5)
    tokens = tower.embed(images)
    assert torch.equal(tower.encode(tokens, sites=Silent()), tower.last_norm(tokens))


class Scaled(TunerHooks):
    """Every projection of zero input features gives its bias: the rows asked for must be the rows given."""

    def linear(self, block, name, x, weight, bias, rows=slice(None)):
        whole = torch.nn.functional.linear(x, weight, bias)
        return whole[..., rows]


@torch.no_grad()
def test_a_projection_asked_for_in_part_is_the_part_of_the_whole(tower, images):
    assert torch.allclose(tower(images, Scaled()), tower(images), atol=1e-5)


def test_a_position_for_each_row_is_picked():
    tokens = torch.arange(12).view(2, 3, 2)
    assert pick(tokens, torch.tensor([2, 0])).tolist() == [[[4, 5]], [[6, 7]]]
    assert pick(tokens, slice(1, 2)).tolist() == [[[2, 3]], [[8, 9]]]


def test_added_keys_are_visible_to_every_query():
    mask = torch.full((2, 2), -torch.inf).triu(1)
    hidden = -torch.inf
    assert mask_for(mask, slice(None), 3).tolist() == [[0, 0, hidden], [0, 0, 0]]
    assert mask_for(mask, torch.tensor([1, 0]), 3).tolist() == [[[[0, 0, 0]]], [[[0, 0, hidden]]]]


def test_one_position_each_equals_all_positions(images):
    text = load_backbone("clip_nano").text
    ids, ends = text.tokens(["a striped star", "one very small dotted ring here"])
    mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
    x = text.embed(ids)
    every = text.encode(x, mask=mask)
    assert torch.allclose(text.encode(x, ends, mask=mask), pick(every, ends), atol=1e-5)


# attention

CAUSAL = torch.full((5, 5), -torch.inf).triu(1)
MASKS = {"none": None, "causal": CAUSAL, "one for each row": torch.stack([CAUSAL[3], CAUSAL[1]])[:, None, None]}


def queries_keys_values(queries, dtype):
    """Two rows, three heads, five keys; as in a tower, the heads are next to each other in memory."""
    draw = torch.Generator().manual_seed(0)
    parts = (torch.randn(2, n, 3, 8, generator=draw).to(dtype).transpose(1, 2) for n in (queries, 5, 5))
    return [part.requires_grad_() for part in parts]


def by_the_formula(q, k, v, mask):
    """softmax(q k' / sqrt(d) + mask) v in float64: Vaswani et al. 2017, eq. 1."""
    weights = q.double() @ k.double().transpose(-1, -2) / math.sqrt(8)
    return (weights if mask is None else weights + mask.double()).softmax(dim=-1) @ v.double()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_attention_and_its_gradients_equal_the_formula(mask, dtype, bound, with_gradients):
    given = queries_keys_values(1 if mask == "one for each row" else 5, dtype)
    expected = by_the_formula(*given, MASKS[mask])
    with torch.set_grad_enabled(with_gradients):
        found = attention(*given, MASKS[mask])
    assert found.dtype == dtype and found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=bound, atol=bound)
    if with_gradients:
        pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
        theirs = torch.autograd.grad(expected, given, pull.double())
        for own, wanted in zip(torch.autograd.grad(found, given, pull.to(dtype)), theirs, strict=True):
            assert torch.allclose(own.double(), wanted.double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_fused_kernel_is_used_where_it_is_faster(dtype, with_gradients, monkeypatch):
    used = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        towers.nn.functional, "scaled_dot_product_attention", lambda *given: used.append(1) or kernel(*given)
    )
    with torch.set_grad_enabled(with_gradients):
        attention(*queries_keys_values(5, dtype))
    assert bool(used) == (dtype == torch.float32 or not with_gradients)
    used.clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(with_gradients):
        attention(*(part.detach().to("cuda").requires_grad_() for part in queries_keys_values(5, dtype)))
    assert used, "on a GPU always"
