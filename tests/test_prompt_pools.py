"""Prompt pools: what each image is given, by hand; and what an experience owns stays as it was left."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, scaled_dot_product_attention

from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.errors import RequestError
from clsim.events import State, Step
from clsim.learner import learner_state, load_learner, replay
from clsim.outputs import as_outputs
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import (
    AppendedTokens,
    PerExperience,
    PoolOutputs,
    Prefixes,
    Progress,
    blocks_of,
    cosines,
    gram_schmidt,
    majority,
    off_orthonormal,
    orthonormal,
    votes,
)
from clsim.strategies.coda_prompt import CodaPrompt
from clsim.strategies.dualprompt import DualPrompt
from clsim.strategies.l2p import L2P
from clsim.strategies.s_prompts import SPrompts, centres

INFO = StreamInfo(tuple("abcdef"), (), "class", 3)  # three experiences of two classes
WIDTH = 32  # of vit_nano's two blocks
POOLS = [DualPrompt, CodaPrompt, SPrompts]
KEYED = [L2P, DualPrompt, CodaPrompt]


def make(kind, **fields):
    torch.manual_seed(0)
    strategy = kind(**fields)
    return strategy, strategy.build(load_backbone("vit_nano"), INFO)


def batch_of(learner, count=6, first=0):
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(first))
    with torch.no_grad():
        return Batch(images, learner.tower(images), first + torch.arange(count) % 2)


def experience_of(index):
    """Experience `index`, whose classes are two of its own."""
    return ExperienceInfo(index, f"experience {index}", (2 * index, 2 * index + 1), 6)


def begin(strategy, learner, index):
    """A step at the start of experience `index`."""
    experience = experience_of(index)
    strategy.begin(learner.train(), experience)
    batch = batch_of(learner, first=2 * index)
    run = State(learner, INFO, 0, mask=strategy.mask, seen=experience.classes, current=experience)
    run.clean_batches = lambda: iter([batch])
    return Step(run, np.arange(len(batch)), batch)


def close(strategy, s):
    """The end of the step's experience."""
    if hasattr(strategy, "after_training_exp"):
        strategy.after_training_exp(s.run)


def learn(strategy, s, steps=2):
    optimizer = strategy.configure_optimizer(s.learner)
    for _ in range(steps):
        s.outputs = as_outputs(s.learner(s.batch))
        optimizer.zero_grad()
        strategy.loss(s).backward()
        optimizer.step()
    close(strategy, s)


def logits(learner, batch):
    return as_outputs(learner(batch)).logits


def trained(learner):
    return sum(p.numel() for p in learner.parameters() if p.requires_grad)


# shared parts


def test_prefixes_put_the_first_half_before_keys_and_the_second_before_values():
    keys, values = torch.zeros(2, 3, 1), torch.ones(2, 3, 1)
    prompt = torch.tensor([[[5.0], [6.0], [7.0], [8.0]]])
    sites = Prefixes({1: prompt})
    k, v = sites.keys_values(1, keys, values)
    assert k[:, :, 0].tolist() == [[5, 6, 0, 0, 0]] * 2 and v[:, :, 0].tolist() == [[7, 8, 1, 1, 1]] * 2
    assert sites.keys_values(0, keys, values)[0] is keys


@torch.no_grad()
def test_prefixes_in_the_tower_equal_attention_over_more_keys_by_hand():
    tower = load_backbone("vit_nano").image
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompt = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    x = tower.embed(images)
    for i, block in enumerate(tower.vit.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        if i == 1:
            k, v = torch.cat([prompt[:, :2], k], dim=1), torch.cat([prompt[:, 2:], v], dim=1)
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in (q, k, v))
        x = x + block.attn.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    assert torch.allclose(tower(images, Prefixes({1: prompt})), tower.pool(tower.vit.norm(x)), atol=1e-5)


def test_cosines_by_hand():
    found = cosines(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [-5.0, 0.0]]))
    assert torch.allclose(found, torch.tensor([[0.96, -0.6], [0.6, 0.0]]))


def test_only_the_current_experience_s_own_gets_a_gradient():
    owned = PerExperience(torch.arange(6.0).view(3, 2))
    every = owned(1)
    assert every.tolist() == [[0, 1], [2, 3], [4, 5]]
    every.sum().backward()
    assert [own.grad is None for own in owned.each] == [True, False, True]


def test_the_experience_is_known_in_training_and_where_the_protocol_reveals_it():
    progress = Progress(3)
    progress.begin(2)
    assert progress.train().known_task(Batch(torch.zeros(2, 1))).tolist() == [2, 2]
    assert progress.eval().known_task(Batch(torch.zeros(2, 1))) is None
    assert progress.known_task(Batch(torch.zeros(2, 1), task=1)).tolist() == [1, 1]


@pytest.mark.parametrize("kind", [DualPrompt, SPrompts])
def test_where_the_task_is_revealed_its_own_prompts_answer(kind):
    strategy, learner = make(kind)
    for index in range(3):
        learn(strategy, begin(strategy, learner, index))
    batch = batch_of(learner.eval())
    with torch.no_grad():
        free = logits(learner, batch)
        told = [logits(learner, dataclasses.replace(batch, task=task)) for task in range(3)]
        assert not any(torch.allclose(a, b, atol=1e-5) for a, b in itertools.combinations(told, 2))
        assert all(any(torch.allclose(row, each[i], atol=1e-5) for each in told) for i, row in enumerate(free))


def test_progress_is_what_begin_made_of_it_and_no_weight():
    progress = Progress(3)
    assert progress.begun == () and progress.current == 0
    progress.begin(2)
    assert progress.current == 2 and progress.mask.tolist() == [False, False, True]
    progress.begin(0)
    assert progress.current == 0 and progress.mask.tolist() == [True, False, True] and progress.begun == (0, 2)
    assert not progress.state_dict(), "begin is repeated by whoever loads weights"


def test_centres_by_hand_and_as_many_as_there_are_places():
    features = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
    assert sorted(centres(features, 2, seed=5).tolist()) == [[0, 1], [10, 1]]
    assert centres(features[:1].expand(7, 2), 5, seed=5).tolist() == [[0, 0]]
    many = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(centres(many, 5, seed=5), centres(many, 5, seed=5))


# all three


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_other_experiences_own_gets_no_gradient_and_stays(kind, optimizer):
    strategy, learner = make(kind, optimizer=optimizer, weight_decay=0.1, lr=0.01)
    learn(strategy, begin(strategy, learner, 0))
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    learn(strategy, begin(strategy, learner, 1))
    moved = {name for name, p in learner.named_parameters() if not torch.equal(p, before[name])}
    silent = {name for name, p in learner.named_parameters() if p.grad is None}
    own = {name for name in before if name.startswith(("experts.", "keys.", "attention.", "prompts.", "heads."))}
    of_second = {name for name in own if ".1" in name}
    assert len(of_second) == len(own) / 3 > 0
    assert own & moved == of_second and own - of_second <= silent


@pytest.mark.parametrize("kind", POOLS)
def test_an_image_s_logits_depend_on_it_alone(kind):
    strategy, learner = make(kind)
    for index in range(3):
        learn(strategy, begin(strategy, learner, index))
    learner.eval()
    batches = [batch_of(learner, count=4, first=2 * i) for i in range(3)]
    batch = Batch(torch.cat([b.images for b in batches]), torch.cat([b.features for b in batches]))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        every = logits(learner, batch)
        shuffled = logits(learner, Batch(batch.images[order], batch.features[order]))
        assert torch.allclose(shuffled, every[order], atol=1e-5)
        single = [logits(learner, Batch(batch.images[i : i + 1], batch.features[i : i + 1])) for i in range(12)]
    assert torch.allclose(torch.cat(single), every, atol=1e-5)


@pytest.mark.parametrize("kind", POOLS)
def test_bfloat16_learns_and_answers_in_float32(kind):
    strategy, learner = make(kind)
    learner.tower.to(torch.bfloat16)
    s = begin(strategy, learner, 0)
    s.batch = dataclasses.replace(s.batch, features=s.batch.features.float())
    with torch.autocast("cpu", torch.bfloat16):
        s.outputs = as_outputs(learner(s.batch))
    strategy.loss(s).backward()
    assert s.logits.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)
    prompts = learner.experts if kind is DualPrompt else learner.prompts
    assert prompts.each[0].grad.any()


@pytest.mark.parametrize("kind", POOLS)
def test_what_evaluation_needs_is_saved_with_the_learner(kind):
    strategy, learner = make(kind)
    for index in range(2):
        learn(strategy, begin(strategy, learner, index))
    again = strategy.build(load_backbone("vit_nano"), INFO)
    replay(strategy, again, [experience_of(0), experience_of(1)], seed=0, device=torch.device("cpu"))
    load_learner(again, learner_state(learner))
    batch = batch_of(learner)
    with torch.no_grad():
        assert torch.equal(logits(again.eval(), batch), logits(learner.eval(), batch))


@pytest.mark.parametrize("kind", POOLS)
def test_unvisited_experiences_are_never_selected(kind):
    """As where all are merged into the last."""
    strategy, learner = make(kind)
    learn(strategy, begin(strategy, learner, 2))
    batch = batch_of(learner)
    learner.eval()
    with torch.no_grad():
        before = logits(learner, batch)
        for name, p in learner.named_parameters():
            if name.split(".")[-1] in ("0", "1") or name.startswith(("heads.0", "heads.1")):
                p.fill_(100.0)
        # classes that no experience learned are the first head's where each has its own
        assert torch.equal(logits(learner, batch)[:, 4:], before[:, 4:]) and torch.isfinite(before).all()


def test_parameters_are_as_many_as_the_formulas_say():
    head = 6 * (WIDTH + 1)
    assert trained(make(DualPrompt)[1]) == 1 * 6 * WIDTH + 3 * (1 * 20 * WIDTH + WIDTH) + head
    assert trained(make(CodaPrompt, blocks=2)[1]) == 3 * 2 * 10 * (8 * WIDTH + 2 * WIDTH) + head
    assert trained(make(SPrompts)[1]) == 3 * (10 * WIDTH + head)


def test_mask_is_that_of_prompt_pools():
    assert {kind().mask for kind in POOLS} == {"current"}


@pytest.mark.parametrize(
    "kind, fields, words",
    [
        (DualPrompt, {"general_blocks": 2}, "general_blocks=2 and expert_blocks=1 need 3 blocks; the tower has 2"),
        (CodaPrompt, {"blocks": 3}, "blocks=3 need 3 blocks; the tower has 2"),
    ],
)
def test_a_tower_too_shallow_is_refused(kind, fields, words):
    with pytest.raises(RequestError, match=words):
        make(kind, **fields)


@pytest.mark.parametrize("kind", POOLS)
def test_a_tower_without_blocks_is_refused(kind):
    with pytest.raises(RequestError, match="no transformer"):
        kind().build(SimpleNamespace(image=SimpleNamespace(layers=[], depth=0)), INFO)


@pytest.mark.parametrize(
    "kind, fields, words",
    [
        (DualPrompt, {"expert_length": 5}, "expert_length must be even"),
        (DualPrompt, {"general_blocks": 0}, "general_blocks must be at least 1"),
        (DualPrompt, {"lr_base": -1.0}, "lr_base must be at least 0"),
        (CodaPrompt, {"prompt_length": 3}, "prompt_length must be even"),
        (CodaPrompt, {"components": 0}, "components must be at least 1"),
        (CodaPrompt, {"ortho": -1.0}, "ortho must be at least 0"),
        (SPrompts, {"centres": 0}, "centres must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        kind(**fields)


# DualPrompt


def test_dualprompt_gives_blocks_their_share_of_the_tower():
    for depth, expected in {2: (1, 1), 6: (1, 2), 12: (2, 3), 24: (4, 6)}.items():
        tower = SimpleNamespace(depth=depth)
        assert (blocks_of(tower, None, 2), blocks_of(tower, None, 3)) == expected
    assert blocks_of(tower, 7, 2) == 7


def test_dualprompt_takes_the_task_s_expert_in_training_and_the_nearest_learned_one_after():
    strategy, learner = make(DualPrompt)
    similarity = torch.tensor([[0.1, 0.5, 0.9], [0.7, 0.2, 0.9]])
    begin(strategy, learner, 0)
    s = begin(strategy, learner, 1)
    assert learner.nearest(similarity).tolist() == [1, 0], "the third is nearest and has not come yet"
    outputs = learner(s.batch)
    own = torch.nn.functional.cosine_similarity(s.batch.features, learner.keys.each[1][None])
    assert torch.allclose(outputs.match, own, atol=1e-6) and outputs.chosen.tolist() == [1] * 6


@torch.no_grad()
def test_dualprompt_is_the_tower_behind_general_and_expert_prefixes():
    strategy, learner = make(DualPrompt)
    for index in range(3):
        begin(strategy, learner, index)
    batch = batch_of(learner)
    together = logits(learner.eval(), batch)
    keys = torch.stack(list(learner.keys.each))
    for i, feature in enumerate(batch.features):
        nearest = max(range(3), key=lambda t: float(normalize(feature, dim=0) @ normalize(keys[t], dim=0)))
        prompts = {0: learner.general[:1], 1: learner.experts.each[nearest]}
        alone = learner.head(learner.tower(batch.images[i : i + 1], Prefixes(prompts)))
        assert torch.allclose(alone[0], together[i], atol=1e-5)


def test_dualprompt_pulls_the_task_s_key_to_the_stream_s_images_only():
    strategy, learner = make(DualPrompt, pull=0.5)
    s = begin(strategy, learner, 1)
    s.batch = dataclasses.replace(s.batch, replayed=2)
    s.outputs = as_outputs(learner(s.batch))
    key = learner.keys.each[1]
    pull = torch.nn.functional.cosine_similarity(s.batch.features[:4], key[None]).mean()
    expected = cross_entropy(s.logits[:, 2:4], s.batch.labels - 2) - 0.5 * pull
    loss = strategy.loss(s)
    assert torch.isclose(loss, expected, atol=1e-6)
    loss.backward()
    (by_hand,) = torch.autograd.grad(-0.5 * pull, key)
    assert torch.allclose(key.grad, by_hand, atol=1e-6), "the cross-entropy never reaches the key"


# CODA-Prompt


def test_coda_penalty_by_hand():
    # B B' = [[1, 1], [1, 2]]
    assert off_orthonormal(torch.tensor([[1.0, 0.0], [1.0, 1.0]])) == 0.75
    _, learner = make(CodaPrompt, components=1, prompt_length=2, blocks=2)
    learner.progress.begin(0)
    learner.progress.begin(1)
    assert learner.penalty().item() == pytest.approx(0, abs=1e-10), "orthonormal at the start"
    with torch.no_grad():
        learner.keys.each[0].mul_(2)  # of two keys in each block one has a square of 4: (4 - 1)^2 / 4 in both blocks
        learner.prompts.each[0][1].copy_(learner.prompts.each[1][1])  # the same component twice in one: 2 * 1^2 / 4
    assert learner.penalty().item() == pytest.approx(2 * 9 / 4 + 2 / 4, abs=1e-5)


def test_coda_starts_from_unit_vectors_orthogonal_as_far_as_the_width_allows():
    rows = orthonormal(3, 2, 4, 8)
    assert rows.shape == (3, 2, 4, 8)
    first = rows[:, 1].flatten(0, 1)
    assert torch.allclose(first.norm(dim=1), torch.ones(12), atol=1e-5)
    assert torch.allclose(first[:8] @ first[:8].T, torch.eye(8), atol=1e-5)


@torch.no_grad()
def test_coda_composes_each_image_s_prompt_of_the_components_begun():
    strategy, learner = make(CodaPrompt, components=2, prompt_length=2, blocks=2)
    begin(strategy, learner, 0)
    begin(strategy, learner, 1)
    queries = batch_of(learner, count=3).features
    composed = learner.compose(queries)
    assert list(composed) == [0, 1]
    for block, prompts in composed.items():
        for i, query in enumerate(queries):
            expected = torch.zeros(2, WIDTH)
            for task in (0, 1):
                for m in range(2):
                    attended = query * learner.attention.each[task][block, m]
                    key = learner.keys.each[task][block, m]
                    weight = (attended @ key) / (attended.norm() * key.norm())
                    expected += weight * learner.prompts.each[task][block, m]
            assert torch.allclose(prompts[i], expected, atol=1e-6)
    # samples do not mix: another neighbour changes nothing
    other = torch.stack([queries[0], queries[2] + 1, -queries[1]])
    assert torch.allclose(learner.compose(other)[0][0], composed[0][0], atol=1e-6)
    assert not torch.allclose(learner.compose(other)[0][1], composed[0][1], atol=1e-4)


def test_coda_loss_adds_the_weighted_penalty():
    strategy, learner = make(CodaPrompt, ortho=0.3)
    s = begin(strategy, learner, 0)
    with torch.no_grad():
        learner.keys.each[0].mul_(2)
    s.outputs = as_outputs(learner(s.batch))
    expected = cross_entropy(s.logits[:, :2], s.batch.labels) + 0.3 * learner.penalty()
    assert learner.penalty() > 0 and torch.isclose(strategy.loss(s), expected, atol=1e-6)


def test_gram_schmidt_by_hand():
    # of old vectors at an angle: d minus its shares of (1, 1, 0) and (1, 0, 0), each counted alone; then unit length
    before = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    torch.manual_seed(0)
    d = torch.randn(3)
    torch.manual_seed(0)
    (found,) = gram_schmidt(before, 1)
    left = d - (d[0] + d[1]) / 2 * torch.tensor([1.0, 1.0, 0.0]) - d[0] * torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(found, left / left.norm(), atol=1e-6)
    rows = gram_schmidt(torch.empty(0, 8), 8)
    assert torch.allclose(rows @ rows.T, torch.eye(8), atol=1e-5), "its own vectors are orthonormal"


def test_coda_as_released_draws_vectors_orthogonal_to_the_trained_ones():
    strategy, learner = make(CodaPrompt, components=2, blocks=2, start="each")
    first = begin(strategy, learner, 0)
    learn(strategy, first)
    trained_keys = [owned.each[0].detach().clone() for owned in (learner.keys, learner.attention, learner.prompts)]
    with torch.no_grad():  # orthogonal to each other: then the new ones are orthogonal to both
        learner.keys.each[0].copy_(3 * torch.eye(WIDTH)[:4].view(2, 2, WIDTH))
    begin(strategy, learner, 1)
    for before, owned in zip(trained_keys[1:], (learner.attention, learner.prompts), strict=True):
        assert torch.equal(owned.each[0], before), "what is trained stays"
        assert torch.allclose(owned.each[1].flatten(2).norm(dim=2), torch.ones(2, 2), atol=1e-5)
    old, new = learner.keys.each[0], learner.keys.each[1]
    assert torch.allclose(new @ old.mT, torch.zeros(2, 2, 2), atol=1e-5)
    assert torch.allclose(new @ new.mT, torch.eye(2).expand(2, 2, 2), atol=1e-5)
    together = make(CodaPrompt, components=2, blocks=2)[1].keys.each[1]
    begin(*make(CodaPrompt, components=2, blocks=2), 1)
    assert not torch.equal(together, new)
    with pytest.raises(RequestError, match="start=each draws 33 vectors of 32 features, more than can be orthogonal"):
        make(CodaPrompt, components=11, start="each")


# what published code does


@pytest.mark.parametrize("kind", KEYED)
def test_queries_are_clean_unless_a_field_says_otherwise_and_always_in_evaluation(kind):
    def asks(batch):
        outputs = learner(batch)
        # the query of dualprompt decides only how the key is pulled where the expert is known
        return outputs.match if kind is DualPrompt else outputs.logits

    for query in ("clean", "augmented"):
        strategy, learner = make(kind, query=query)
        s = begin(strategy, learner, 0)
        moved = dataclasses.replace(s.batch, features=s.batch.features.flip(0))
        with torch.no_grad():
            assert torch.equal(asks(s.batch), asks(moved)) == (query == "augmented")
            learner.eval()
            assert not torch.equal(asks(s.batch), asks(moved))


@pytest.mark.parametrize("kind", KEYED)
def test_the_gradient_s_norm_counts_frozen_weights_as_in_the_authors_code(kind):
    strategy, learner = make(kind, clip_over="all", clip_grad=0.01)
    s = begin(strategy, learner, 0)
    frozen = list(learner.tower.parameters())

    def step():
        strategy.before_forward(s)
        s.outputs = as_outputs(learner(s.batch))
        for p in learner.parameters():
            p.grad = None
        strategy.loss(s).backward()

    step()
    raw = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    norm = sum(grad.square().sum() for grad in raw.values()).sqrt()
    own = {name: grad for name, grad in raw.items() if not name.startswith("tower.")}
    assert norm > 1.02 * sum(grad.square().sum() for grad in own.values()).sqrt() > 0.015
    strategy.after_backward(s)
    for name, grad in own.items():
        assert torch.allclose(learner.get_parameter(name).grad, grad * 0.01 / (norm + 1e-6), rtol=1e-4)
    assert not [p for p in frozen if p.requires_grad or p.grad is not None], "frozen again"
    left = torch.stack([learner.get_parameter(name).grad.norm() for name in own]).norm()
    assert left < 0.01, "the loop's own limit changes nothing more"


def test_heads_start_as_in_published_code():
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 500)
    torch.manual_seed(0)
    head = LinearHead(64, 500)
    assert torch.equal(head.weight, plain.weight) and torch.equal(head.bias, plain.bias)
    zero, normal = LinearHead(64, 500, start="zero"), LinearHead(64, 500, start="normal")
    assert not zero.weight.any() and not zero.bias.any() and not normal.bias.any()
    assert normal.weight.std().item() == pytest.approx(0.02, rel=0.02) and normal.weight.abs().max() > 0.06
    for kind in KEYED:
        assert not make(kind, head_init="zero")[1].head.weight.any()


def test_dualprompt_s_expert_starts_from_the_former_one_as_in_the_authors_code():
    for start in ("random", "former"):
        strategy, learner = make(DualPrompt, start=start)
        learn(strategy, begin(strategy, learner, 0))
        key, former = learner.keys.each[2].clone(), learner.experts.each[0].detach().clone()
        begin(strategy, learner, 2)  # the second did not come
        assert torch.equal(learner.experts.each[2], former) == (start == "former")
        assert torch.equal(learner.keys.each[2], key) and torch.equal(learner.experts.each[0], former)


def test_lengths_of_dualprompt_s_authors_are_of_keys_and_again_of_values():
    # config: g_prompt_length 5; e-prompts of length 5, for ImageNet-R 20
    for preset, length in (("official", 5), ("official_imagenet_r", 20)):
        learner = make(DualPrompt, **DualPrompt.presets[preset])[1]
        assert learner.general.shape == (1, 2 * 5, WIDTH) and learner.experts.each[0].shape == (1, 2 * length, WIDTH)
        prefixes = Prefixes({0: learner.experts.each[0]})
        assert prefixes.keys_values(0, torch.zeros(2, 17, WIDTH), torch.zeros(2, 17, WIDTH))[0].shape[1] == length + 17
    rates = [DualPrompt(**DualPrompt.presets[name]).learning_rate for name in ("official", "official_imagenet_r")]
    assert rates == pytest.approx([0.03 * 192 / 256, 0.005 * 192 / 256])


def test_coda_s_released_rates_are_those_of_its_schedule():
    strategy = CodaPrompt(**CodaPrompt.presets["release"])
    found = [strategy.learning_rate_at(epoch, 7, 39) for epoch in range(20)]
    assert found == pytest.approx([1e-3 * np.cos(99 * np.pi * epoch / (200 * 19)) for epoch in range(20)])


def most_common(chosen, size):
    """The majority by the port's own steps: unique ids and their counts, filled up to the pool's size, and topk."""
    ids, counts = torch.unique(chosen, return_counts=True, sorted=True)
    rest = size - len(ids)
    ids, counts = torch.cat([ids, ids.min().expand(rest)]), torch.cat([counts, counts.new_zeros(rest)])
    return ids[torch.topk(counts, chosen.shape[1]).indices]


def test_votes_of_the_port_are_counted_as_there():
    draw, ties = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        chosen = torch.rand(4, 10, generator=draw).topk(3, dim=1).indices
        found = majority(chosen, 10, "topk")
        assert found.tolist() == [most_common(chosen, 10).tolist()] * 4
        ties += found.tolist() != majority(chosen, 10).tolist()
        # both have the same numbers of votes
        counts = votes(chosen, 10)
        assert counts[found[0]].sort().values.tolist() == counts[majority(chosen, 10)[0]].sort().values.tolist()
    assert ties > 20


@torch.no_grad()
def test_l2p_s_images_vote_in_groups_as_on_several_devices():
    _, learner = make(L2P, pool_size=4, top_k=1, selection_train="batch", voters=3)
    similarity = torch.eye(4)[torch.tensor([2, 0, 2, 1, 1, 3, 3])]
    assert learner.train().choose(similarity)[:, 0].tolist() == [2, 2, 2, 1, 1, 1, 3]
    assert learner.eval().choose(similarity)[:, 0].tolist() == [2, 0, 2, 1, 1, 3, 3], "in evaluation each for itself"


@pytest.mark.parametrize(
    "kind, preset", [(kind, preset) for kind in KEYED for preset in kind.presets], ids=lambda value: str(value)
)
@torch.no_grad()
def test_presets_evaluate_each_image_by_itself(kind, preset):
    """Where batches vote in training, too."""
    strategy, learner = make(kind, **kind.presets[preset])
    for index in range(3):
        begin(strategy, learner, index)
    for p in learner.parameters():
        p.add_(0.1 * p.requires_grad * torch.randn_like(p))
    batch = batch_of(learner.eval(), count=12)
    batch = dataclasses.replace(batch, features=torch.randn(12, WIDTH))
    every = logits(learner, batch)
    single = [logits(learner, Batch(batch.images[i : i + 1], batch.features[i : i + 1])) for i in range(12)]
    assert torch.allclose(torch.cat(single), every, atol=1e-5) and every.std(dim=0).min() > 1e-3


# S-Prompts


@torch.no_grad()
def test_s_prompts_takes_prompts_and_head_of_the_nearest_centre():
    strategy, learner = make(SPrompts, centres=2)
    for index in range(3):
        close(strategy, begin(strategy, learner, index))
    batch = batch_of(learner, first=4)
    chosen = learner.nearest(batch.features)
    together = logits(learner.eval(), batch)
    for i, feature in enumerate(normalize(batch.features)):
        distance = (learner.centres - feature).norm(dim=2).amin(dim=1)
        nearest = int(distance.argmin())
        assert int(chosen[i]) == nearest
        alone = learner.tower(batch.images[i : i + 1], AppendedTokens(learner.prompts.each[nearest][None]))
        own = [2 * nearest, 2 * nearest + 1]
        assert torch.allclose(learner.heads[nearest](alone)[0, own], together[i, own], atol=1e-5)
        assert int(together[i].argmax()) in own


def test_s_prompts_keeps_the_centres_of_unit_features_and_nothing_of_experiences_to_come():
    strategy, learner = make(SPrompts, centres=1)
    s = begin(strategy, learner, 1)
    close(strategy, s)
    assert torch.allclose(learner.centres[1, 0], normalize(s.batch.features).mean(dim=0), atol=1e-6)
    assert torch.isinf(learner.centres[[0, 2]]).all()
    assert learner.nearest(s.batch.features).tolist() == [1] * 6


def test_s_prompts_puts_classes_of_other_experiences_below_by_their_own_heads():
    _, learner = make(SPrompts)
    learner.begin(0, (0, 1))
    learner.begin(1, (2, 3))
    scores = torch.zeros(2, 3, 6)
    scores[:, 0] = torch.tensor([1.0, 2.0, 50.0, 50.0, 0.0, 0.0])
    scores[:, 1] = torch.tensor([60.0, 60.0, 7.0, 9.0, 0.0, 0.0])
    answers = learner.answer(scores, torch.tensor([0, 1]))
    # each class by the head that learned it: 1, 2, 7, 9; those not chosen move until 9 is one below the smallest chosen
    assert answers[0, :4].tolist() == [1, 2, 7 - 9, 0]
    assert answers[1, :4].tolist() == [6 + 1 - 9, 6 + 2 - 9, 7, 9]
    assert answers[0].argmax() == 1 and answers[1].argmax() == 3


def test_s_prompts_in_a_domain_stream_answers_with_the_chosen_head_alone():
    _, learner = make(SPrompts)
    learner.begin(0, tuple(range(6)))
    learner.begin(1, tuple(range(6)))
    scores = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(learner.answer(scores, torch.tensor([1, 0])), torch.stack([scores[0, 1], scores[1, 0]]))


# detected tasks


@pytest.mark.parametrize("kind", [DualPrompt, SPrompts])
def test_a_task_is_detected_only_where_it_is_not_known(kind):
    strategy, learner = make(kind)
    batch = batch_of(learner.eval())
    with torch.no_grad():
        assert learner(batch).task is None, "nothing is learned yet"
    for index in range(2):
        learn(strategy, begin(strategy, learner, index), steps=1)
    with torch.no_grad():
        assert learner.train()(batch).task is None, "in training it is known"
        learner.eval()
        assert learner(dataclasses.replace(batch, task=1)).task is None, "the protocol reveals it"
        detected = learner(batch).task
    assert detected.shape == (6,) and set(detected.tolist()) <= {0, 1}


def test_coda_prompt_detects_no_task():
    strategy, learner = make(CodaPrompt)
    learn(strategy, begin(strategy, learner, 0), steps=1)
    with torch.no_grad():
        assert learner.eval()(batch_of(learner)).task is None


@torch.no_grad()
def test_dualprompt_detects_the_task_of_the_nearest_key_by_hand():
    strategy, learner = make(DualPrompt)
    for index in range(3):
        begin(strategy, learner, index)
    for key, direction in zip(learner.keys.each, ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]), strict=True):
        key.copy_(torch.tensor([*direction, *[0.0] * (WIDTH - 2)]))
    queries = torch.zeros(4, WIDTH)
    queries[:, :2] = torch.tensor([[9.0, 1.0], [1.0, 9.0], [2.0, 3.0], [-1.0, 0.5]])
    batch = dataclasses.replace(batch_of(learner, count=4), features=queries)
    assert learner.eval()(batch).task.tolist() == [0, 1, 2, 1]


# L2P's counts


@torch.no_grad()
def test_l2p_counts_by_hand_and_in_training_steps_alone():
    strategy, learner = make(L2P, pool_size=3, top_k=2)
    s = begin(strategy, learner, 0)
    for _ in range(3):
        learner(s.batch)
    assert learner.used.tolist() == [0, 0, 0]
    chosen = torch.tensor([[0, 2], [2, 1], [2, 0]])
    s.outputs = PoolOutputs(torch.zeros(3, 6), chosen=chosen, match=torch.zeros(3, 2))
    strategy.after_forward(s)
    assert learner.used.tolist() == [2, 1, 3] and learner.used_before.tolist() == [0, 0, 0]
    strategy.after_training_exp(s.run)
    assert learner.used.tolist() == [0, 0, 0] and learner.used_before.tolist() == [2, 1, 3]


def test_votes_and_their_majority_by_hand():
    chosen = torch.tensor([[0, 3], [3, 1], [1, 3]])
    assert votes(chosen, 5).tolist() == [1, 2, 0, 3, 0]
    assert majority(chosen, 5).tolist() == [[3, 1]] * 3
    assert majority(torch.tensor([[2, 1]]), 3).tolist() == [[1, 2]], "ties go to the lower id"
