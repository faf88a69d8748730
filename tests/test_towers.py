"""The four sites: offered at every block; left alone they change nothing, used they change what the tower says."""

import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.backbones.towers import TunerHooks, mask_for, pick


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
