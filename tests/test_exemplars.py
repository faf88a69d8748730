"""Memories that choose what they keep, and the methods that learn from them: gdumb and icarl."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.transforms import Augmentation
from clsim.errors import RunFailed
from clsim.events import Part, State, Step
from clsim.parts.exemplars import balanced, herding
from clsim.parts.herding import Herding
from clsim.strategies.gdumb import GDumb, Restarting
from clsim.strategies.icarl import ICarl
from clsim.tools import Tools

pytestmark = pytest.mark.usefixtures("without_pictures")
NONE = np.empty(0, dtype=np.int64)


# what is kept


def test_herding_by_hand():
    """The mean of 0, 1, 2 and 9 is 3: nearest is 2; then (2 + x) / 2 with x = 1 (1.5 away), then x = 9 makes 4."""
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    assert herding(features, 4) == [2, 1, 3, 0]
    assert herding(features, 9) == [2, 1, 3, 0], "no image is chosen twice"


def test_herding_begins_with_the_nearest_and_fewer_are_the_first_of_more():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    chosen = herding(features, 10)
    assert chosen[0] == int((features - features.mean(dim=0)).norm(dim=1).argmin())
    assert herding(features, 5) == chosen[:5]
    distance = (features[chosen].mean(dim=0) - features.mean(dim=0)).norm()
    assert distance < (features[:10].mean(dim=0) - features.mean(dim=0)).norm()


def test_a_balanced_memory_by_hand():
    labels, draw = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2]), np.random.default_rng(0)
    first = balanced(NONE, np.arange(5), labels, 4, draw)
    assert first.tolist() == [0, 1, 2, 3], "the fifth has no place, and takes none from its own class"
    second = balanced(first, np.array([5, 6, 7]), labels, 4, draw)
    assert Counter(labels[second].tolist()) == {0: 2, 1: 2} and {5, 6} < {*second.tolist()}
    third = balanced(second, np.array([8, 9]), labels, 4, draw)
    # a third class has room for 4 / 3: two images, as one is fewer than that; the largest classes lose one each
    assert sorted(Counter(labels[third].tolist()).items()) == [(0, 1), (1, 1), (2, 2)]


def test_a_balanced_memory_of_many_classes_is_balanced():
    labels = np.repeat(np.arange(20), 30)
    rows = np.random.default_rng(1).permutation(600)
    kept = balanced(NONE, rows, labels, 100, np.random.default_rng(2))
    assert len(kept) == len({*kept.tolist()}) == 100 and {*Counter(labels[kept].tolist()).values()} == {5}
    assert balanced(NONE, rows, labels, 1000, np.random.default_rng(2)).tolist() == list(range(600))


# gdumb


class Learned(Part):
    """The rows of every experience's steps, and the learner's weights when it began."""

    def __init__(self):
        self.rows, self.began = [], []

    def before_training_exp(self, s):
        self.rows.append(set())
        self.began.append({n: p.detach().clone() for n, p in s.learner.named_parameters()})

    def before_training_iteration(self, s):
        self.rows[-1] |= {*s.rows.tolist()}


def test_gdumb_learns_its_memory_alone_from_the_start(make_loop):
    spy = Learned()
    loop = make_loop("gdumb", parts=[spy], memory=14)
    loop.run()
    table, stream = loop.benchmark.train_table, loop.benchmark.train_stream
    first, second, third = spy.rows
    assert first == {*stream[0].rows.tolist()} and len(second) == len(third) == 14
    assert first & second and first & third
    assert sorted(Counter(table.labels[sorted(third)].tolist()).values()) == [2, 2, 2, 2, 3, 3]
    assert third == {*loop.strategy.rows.tolist()}
    assert loop.strategy.stored_bytes == table.bytes_of(loop.strategy.rows)
    pretrained = load_backbone("vit_nano").image.state_dict()
    for began in spy.began:
        assert all(torch.equal(began[f"images.tower.{name}"], pretrained[name]) for name in pretrained)
    assert not torch.equal(spy.began[0]["head.weight"], spy.began[1]["head.weight"]), "a new head each time"
    assert not torch.equal(spy.began[2]["head.weight"], dict(loop.state.learner.named_parameters())["head.weight"])


def test_gdumb_keeps_other_images_with_another_seed_and_reports_their_bytes(tmp_path, finished, make_loop):
    kept = []
    for seed in (0, 0, 1):
        loop = make_loop("gdumb", memory=14, seed=seed, epochs=1)
        loop.run()
        kept.append(loop.strategy.rows.tolist())
    assert kept[0] == kept[1] != kept[2]
    run = finished("gdumb", tmp_path, memory=14, epochs=1)
    assert run.summary["cost"]["memory_bytes"] == 14 * 3 * 8 * 8


def test_the_rates_of_warm_restarts_by_hand():
    rates = [GDumb(lr=1.0, restarts=True, epochs=8).learning_rate_at(epoch, 0, 5) for epoch in range(8)]
    # an epoch at a tenth, then cosines of 1, 2 and 4 epochs between 1 and 0.01
    half, quarter = 0.505, 0.495 * math.cos(math.pi / 4)
    assert rates == pytest.approx([0.1, 1, 1, half, 1, half + quarter, half, half - quarter])


@pytest.fixture
def step(prepare, tmp_path):
    """A step of a strategy on the first five images of the second experience, before its forward pass."""

    def make(strategy, **fields):
        job = prepare(strategy, tmp_path, **fields)
        learner, tower = job.learner()
        earlier, experience = job.benchmark.train_stream[:2]
        seen = tuple(sorted({*earlier.classes, *experience.classes}))
        state = State(learner.train(), job.benchmark.info, 0, seen=seen, current=experience)
        state.tools = Tools(learner, job.loader(experience.table, tower), Augmentation(1.0, False), bf16=False)
        batch = next(state.clean_batches(experience.rows[:5]))
        return job.strategy, Step(state, experience.rows[:5], batch)

    return make


def test_cutmix_mixes_images_and_labels_in_the_same_share(step):
    strategy, s = step("gdumb", cutmix=1.0)
    before = s.batch.known_images.clone()
    strategy.before_forward(s)
    images, other = s.batch.known_images, before.roll(1, 0)
    top, bottom, left, right = strategy._box(s)
    inside = torch.zeros_like(before, dtype=torch.bool)
    inside[:, :, top:bottom, left:right] = True
    assert torch.equal(images, torch.where(inside, other, before)) and inside.any() and not inside.all()
    share = inside.float().mean()
    s.outputs = s.run.outputs(s.batch)
    likelihoods = s.logits - s.logits[:, s.seen].logsumexp(dim=1, keepdim=True)
    own, others = (likelihoods[range(5), labels].mean() for labels in (s.batch.labels, s.batch.labels.roll(1)))
    assert torch.allclose(strategy.loss(s), -(1 - share) * own - share * others)


def test_cutmix_is_for_a_share_of_the_batches_and_of_the_image(step):
    strategy, s = step("gdumb", cutmix=0.5)
    boxes, areas = [], []
    for number in range(2000):
        s.run.step = number
        boxes.append(strategy._box(s))
        if boxes[-1] is not None:
            top, bottom, left, right = boxes[-1]
            assert 0 <= top <= bottom <= 16 and 0 <= left <= right <= 16
            areas.append((bottom - top) * (right - left) / 256)
    assert abs(len(areas) / 2000 - 0.5) < 0.04 and 0.15 < np.mean(areas) < 0.45
    assert GDumb()._box(s) is None


# icarl


def moved(strategy, s):
    """The strategy, the step after a change of the head, and the logits before it."""
    strategy.exemplars.kept = {0: [0]}
    strategy.before_training_exp(s.run)
    with torch.no_grad():
        s.learner.head.weight.mul_(-2.0)
    s.outputs = s.run.outputs(s.batch)
    return strategy, s, s.run.outputs(s.batch, strategy.before).logits


def test_icarl_s_targets_are_labels_of_the_new_and_outputs_of_the_old_classes(step):
    strategy, s, old = moved(*step("icarl"))
    assert not torch.allclose(old, s.logits) and len(s.seen) == 4
    terms = []
    for i, label in enumerate(s.batch.labels.tolist()):
        for c in s.seen:  # of six classes two have not come yet
            p = torch.sigmoid(s.logits[i, c])
            target = torch.sigmoid(old[i, c]) if c not in s.experience.classes else float(label == c)
            terms.append(-(target * p.log() + (1 - target) * (1 - p).log()))
    assert torch.allclose(strategy.loss(s), torch.stack(terms).mean(), atol=1e-6)


def test_icarl_with_softmax_adds_distillation_at_temperature_2(step):
    strategy, s, before = moved(*step("icarl", distil="kd"))
    old = sorted({*s.seen} - {*s.experience.classes})
    distilled = -((before[:, old] / 2).softmax(1) * (s.logits[:, old] / 2).log_softmax(1)).sum(1).mean()
    likelihoods = s.logits - s.logits[:, s.seen].logsumexp(dim=1, keepdim=True)
    plain = -likelihoods[range(5), s.batch.labels].mean()
    assert torch.allclose(strategy.loss(s), plain + distilled, atol=1e-6)


def test_icarl_learns_new_images_and_all_exemplars_and_classifies_by_their_means(make_loop):
    spy = Learned()
    loop = make_loop("icarl", parts=[spy], memory=13)
    loop.run()
    strategy, stream, table = loop.strategy, loop.benchmark.train_stream, loop.benchmark.train_table
    assert {c: len(rows) for c, rows in strategy.exemplars.kept.items()} == dict.fromkeys(range(6), 2)
    assert spy.rows[0] == {*stream[0].rows.tolist()}
    # after one experience 6 of each class, after two 3 of each: 12 images, then 12 and 12, then 12 and 12
    assert [len(rows) for rows in spy.rows] == [12, 24, 24] and {*stream[2].rows.tolist()} < spy.rows[2]
    assert strategy.stored_bytes == table.bytes_of(strategy.exemplars.rows) and not strategy.before
    learner = loop.state.learner.eval()

    def unit(rows):
        (batch,) = loop.state.clean_batches(np.array(rows))
        with torch.no_grad():
            return torch.nn.functional.normalize(learner(batch).features, dim=1)

    for c in stream[2].classes:  # those of earlier classes were chosen by earlier weights
        own = stream[2].rows[stream[2].labels == c]
        assert strategy.exemplars.kept[c] == own[herding(unit(own), 2)].tolist()
    means = torch.stack([unit(strategy.exemplars.kept[c]).mean(dim=0) for c in range(6)])
    assert torch.allclose(learner.means.means.float(), means, atol=1e-5), "of all classes, under the current weights"


def test_icarl_keeps_as_many_of_each_class_as_asked(make_loop):
    loop = make_loop("icarl", per_class=3, epochs=1)
    loop.run()
    assert {len(rows) for rows in loop.strategy.exemplars.kept.values()} == {3}


@pytest.mark.parametrize("cls", [GDumb, ICarl])
def test_memories_refuse_what_cannot_be(cls):
    for fields, words in (({"memory": 0}, "memory"), ({"mask": "current"}, "mask=current")):
        with pytest.raises(ValueError, match=words):
            cls(**fields)


def test_a_restarted_learner_has_its_first_tower():
    learner = Restarting(load_backbone("vit_nano").image.requires_grad_(), 3)
    batch = Batch(torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        first = learner(batch)
        for parameter in learner.parameters():
            parameter.add_(0.1)
        learner.restart()
        assert torch.equal(learner(replace(batch)).features, first.features)
        assert not torch.equal(learner(batch).logits, first.logits)


# --with herding


def test_herding_replays_exemplars_of_earlier_classes(make_loop):
    part, spy = Herding(size=8), Learned()
    loop = make_loop("linear", parts=[part, spy], epochs=1)
    loop.run()
    stream, table = loop.benchmark.train_stream, loop.benchmark.train_table
    assert {c: len(rows) for c, rows in part.exemplars.kept.items()} == dict.fromkeys(range(6), 1)
    assert part.stored_bytes == 6 * table.bytes_of(np.arange(1))
    for c in stream[2].classes:
        own = stream[2].rows[stream[2].labels == c]
        features = torch.nn.functional.normalize(loop.state.features(own), dim=1)
        assert part.exemplars.kept[c] == own[herding(features, 1)].tolist()


def test_replayed_exemplars_are_as_many_as_images_of_the_stream(make_loop):
    class Replayed(Part):
        def __init__(self):
            self.seen = []

        def before_forward(self, s):
            self.seen.append((len(s.batch), s.batch.replayed, {*s.batch.labels[len(s.rows) :].tolist()}))

    spy = Replayed()
    loop = make_loop("linear", parts=[Herding(size=6, per_class=True), spy], epochs=1)
    loop.run()
    stream = loop.benchmark.train_stream
    assert spy.seen[:3] == [(4, 0, set())] * 3
    assert all((size, count) == (8, 4) and classes <= {*stream[0].classes} for size, count, classes in spy.seen[3:6])
    assert all(count == 4 for _, count, _ in spy.seen[6:])


def test_a_run_with_herding_resumes_and_wants_features(tmp_path, broken_off, finished, same_run, make_loop):
    whole = finished("linear", tmp_path / "whole", **{"with": ["herding:6"]})
    broken_off(12, lambda: finished("linear", tmp_path / "broken", checkpoint_minutes=0, **{"with": ["herding:6"]}))
    same_run(finished("linear", tmp_path / "broken", checkpoint_minutes=0, **{"with": ["herding:6"]}), whole)
    assert whole.summary["cost"]["memory_bytes"] == 6 * 3 * 8 * 8
    loop = make_loop("linear", parts=[Herding()], epochs=1)
    forward = loop.state.learner.forward
    loop.state.learner.forward = lambda batch: forward(batch).logits
    with pytest.raises(RunFailed, match="herding needs features: Headed returns no Outputs with them"):
        loop.run()
    with pytest.raises(ValueError, match="at least 1 image"):
        Herding(size=0)
