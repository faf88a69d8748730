"""Memories and regularisers in steps: the formulas of EWC, LwF and DER++ by hand, what they keep, and reservoirs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clsim import checkpoint
from clsim.data.batches import Batch, Loader
from clsim.data.streams import Scenario, class_incremental
from clsim.data.transforms import Augmentation, InputSpec
from clsim.events import State, Step
from clsim.outputs import Outputs
from clsim.parts.der import Der
from clsim.parts.ewc import Ewc
from clsim.parts.lwf import Lwf, distillation
from clsim.parts.memory import Reservoir
from clsim.tools import Tools


class Plane(nn.Module):
    """Logits W x without bias, W from zero."""

    def __init__(self, width=2, num_classes=2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, width))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, batch):
        if self.training:
            self.calls += 1
        return batch.features @ self.weight.T


class Bank:
    """Features of a table's rows, as they are given."""

    def __init__(self, features):
        self.features = torch.tensor(features)
        self.asked = []

    def rows(self, rows):
        self.asked.append(rows.tolist())
        return self.features[torch.from_numpy(rows)]


def running(benchmark, learner, features, **given):
    """A run that stands in its first experience, with `features` of the rows of the training table."""
    loader = Loader(benchmark.train_table, InputSpec(16, crop=1.0), {"features"}, torch.device("cpu"), Bank(features))
    s = State(learner, benchmark.info, 0, tools=Tools(learner, loader, Augmentation(1.0, False), bf16=False), **given)
    s.current = benchmark.train_stream[0]
    return s


def step(s, loss, batch=None, rows=None, logits=None):
    """An update of the run whose loss stands at `loss`."""
    made = Step(s, s.experience.rows if rows is None else rows, batch)
    if logits is None and batch is not None:
        logits = s.forward(batch)
    made.outputs = Outputs(torch.zeros(1, 1) if logits is None else logits)
    made.loss = torch.tensor(loss)
    return made


@pytest.fixture
def s(make_table):
    """A run that stands at the end of its first experience: two images of two classes."""
    benchmark = class_incremental(Scenario(order_seed=-1), make_table(2, 1), make_table(2, 1), 2)
    return running(benchmark, Plane(), [[1.0, 2.0], [3.0, 0.0]], seen=(0, 1))


# EWC


def test_ewc_importance_is_the_mean_of_squared_gradients_of_single_images(s):
    ewc = Ewc(4.0)
    ewc.after_training_exp(s)
    # p = 1/2 everywhere, so each image's gradient is -+ x / 2: squares (1, 4) / 4 and (9, 0) / 4, mean (5/4, 1/2).
    # The squared gradient of the batch's mean would have (1/2, -1/2)^2 = (1/4, 1/4).
    assert ewc.fisher.keys() == ewc.anchor.keys() == {"weight"}, "neither what is frozen nor buffers"
    assert torch.allclose(ewc.fisher["weight"], torch.tensor([[1.25, 0.5], [1.25, 0.5]]))
    assert ewc.stored_bytes == 2 * 4 * 4


def test_ewc_adds_half_lambda_times_the_springs_energy(s):
    ewc = Ewc(4.0)
    first = step(s, 0.25)
    ewc.before_backward(first)
    assert first.loss == 0.25, "nothing to hold on to in the first experience"
    ewc.after_training_exp(s)
    with torch.no_grad():
        s.learner.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    ewc.before_backward(first)
    # 4 / 2 * (1.25 * 1 + 0.5 * 4)
    assert first.loss.item() == pytest.approx(0.25 + 6.5)
    first.loss.backward()
    assert torch.allclose(s.learner.weight.grad, torch.tensor([[5.0, 0.0], [0.0, 4.0]]))


def test_ewc_sums_importances_and_moves_the_anchor(s):
    ewc = Ewc(1.0)
    ewc.after_training_exp(s)
    first = ewc.fisher["weight"].clone()
    with torch.no_grad():
        s.learner.weight[0, 0] = 1.0
    ewc.after_training_exp(s)
    p = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))  # of class 0, for the images (1, 2) and (3, 0)
    second = ((1 - p[0]) ** 2 * 1 + p[1] ** 2 * 9) / 2
    assert ewc.fisher["weight"][0, 0].item() == pytest.approx(first[0, 0].item() + second, abs=1e-6)
    assert ewc.anchor["weight"][0, 0] == 1.0
    other, after = Ewc(1.0), step(s, 0.0)
    other.load(ewc.state())
    other.before_backward(after)
    assert after.loss == 0.0 and torch.equal(other.fisher["weight"], ewc.fisher["weight"])


def test_ewc_tells_apart_what_the_training_loss_tells_apart(s):
    s.current = replace(s.experience, classes=(0,), rows=s.experience.rows[:1])
    for mask, zero in (("current", True), ("seen", False)):
        s.mask, ewc = mask, Ewc(1.0)
        ewc.after_training_exp(s)
        # among one class alone nothing can be told apart: the likelihood is 1 whatever the weights
        assert (ewc.fisher["weight"].sum().item() == 0) == zero


# LwF


def test_distillation_by_hand():
    taught = torch.tensor([[0.0, 2 * math.log(3), 50.0]])  # softened: 1/4 and 3/4; class 2 is new
    classes = torch.tensor([0, 1])
    assert distillation(torch.zeros(1, 3), taught, classes).item() == pytest.approx(math.log(2))
    student = torch.tensor([[2 * math.log(3), 0.0, -7.0]])  # softened: 3/4 and 1/4
    expected = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert distillation(student, taught, classes).item() == pytest.approx(expected, abs=1e-6)


def test_lwf_teaches_with_the_weights_of_before_the_experience_on_the_same_batch(s):
    lwf = Lwf(3.0)
    batch = Batch(None, torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    s.learner.train()
    first = step(s, 0.5, batch)
    lwf.before_training_exp(s)
    lwf.before_backward(first)
    assert first.loss == 0.5 and lwf.stored_bytes == 0, "nobody to learn from in the first experience"
    with torch.no_grad():
        s.learner.weight.copy_(torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0]]))
    lwf.after_training_exp(s)
    lwf.before_training_exp(s)
    assert lwf.stored_bytes == 4 * 4 + 4, "weights that learn and the buffer, not the frozen ones"
    with torch.no_grad():
        s.learner.weight.zero_()
    s.learner.weight.grad = None
    second = step(s, 0.5, batch)
    lwf.before_backward(second)
    assert second.loss.item() == pytest.approx(0.5 + 3 * math.log(2))
    assert s.learner.training and s.learner.calls == 2, "the teacher leaves no trace in the learner"
    second.loss.backward()
    # d/dz of the cross-entropy at temperature 2: (q - p) / 2 = (1/2 - 1/4, 1/2 - 3/4) / 2
    assert torch.allclose(s.learner.weight.grad[:, 0], 3 * torch.tensor([0.125, -0.125]))


# DER++


def test_der_adds_squared_differences_and_cross_entropy_on_two_draws(make_table):
    table = make_table(4, 5)
    benchmark = class_incremental(Scenario(order_seed=-1), table, table, 2)
    s = running(benchmark, Plane(3, 4), [[0.0] * 3] * 20, seen=(0, 1), mask="current")
    der = Der(0.5, 2.0, 3)
    logits = torch.arange(40.0).reshape(10, 4)
    first = step(s, 1.0, logits=logits)
    der.after_forward(first)
    der.before_backward(first)
    assert first.loss == 1.0, "nothing is remembered before the first experience is learned"
    der.after_forward(step(s, 1.0, logits=logits + 1))  # the last step counts
    der.after_training_exp(s)
    assert der.memory.rows.tolist() == list(der.logits) and len(der.logits) == 3
    for row, stored in der.logits.items():
        assert stored.tolist() == [4.0 * row + 1 + k for k in range(4)]
    assert der.stored_bytes == 3 * (3 * 16 * 16 + 4 * 4)
    s.current, s.seen = benchmark.train_stream[1], (0, 1, 2)
    second = step(s, 1.0, rows=np.array([10, 11]))
    der.before_backward(second)
    (rows,) = s.tools.loader.bank.asked
    assert len(rows) == 4 and set(rows) <= set(der.logits)
    # the learner's logits are all zero: mean square of what is stored, and log 3 for three classes seen
    square = np.mean([value**2 for row in rows[:2] for value in der.logits[row].tolist()])
    assert second.loss.item() == pytest.approx(1 + 0.5 * square + 2 * math.log(3), rel=1e-6)
    other = Der(0.5, 2.0, 3)
    other.load(der.state())
    assert list(other.logits) == list(der.logits) and other.stored_bytes == der.stored_bytes
    assert all(torch.equal(other.logits[row], der.logits[row]) for row in der.logits)


def test_draws_for_logits_and_labels_are_independent(make_table):
    table = make_table(2, 50)
    benchmark = class_incremental(Scenario(order_seed=-1), table, table, 2)
    s = running(benchmark, Plane(3, 2), [[0.0] * 3] * 100)
    memory = Der(1.0, 1.0, 60).memory
    memory.after_training_exp(s)
    common = []
    for s.step in range(50):
        now = Step(s, np.arange(20))
        a, b = memory.draw(now, "replay of logits"), memory.draw(now, "replay of labels")
        common.append(len(set(a.tolist()) & set(b.tolist())))
    assert 4 < np.mean(common) < 9  # 20 of 60 twice: 6.7 in common


def test_checkpoints_inside_an_experience_keep_the_latest_logits_and_the_teacher(s, tmp_path):
    dark, lwf = Der(1.0, 1.0, 5), Lwf(1.0)
    dark.after_forward(step(s, 0.0, rows=s.experience.rows[::-1].copy(), logits=torch.tensor([[1.0, 2], [3, 4]])))
    lwf.after_training_exp(s)
    lwf.before_training_exp(s)
    checkpoint.save(tmp_path, {"dark": dark.state(), "lwf": lwf.state()})
    saved = checkpoint.load(tmp_path)
    other, student = Der(1.0, 1.0, 5), Lwf(1.0)
    other.load(saved["dark"])
    student.load(saved["lwf"])
    with torch.no_grad():
        s.learner.weight.fill_(7.0)  # training went on
    assert student.classes == (0, 1) and torch.equal(student.teacher["weight"], torch.zeros(2, 2))
    other.after_training_exp(s)
    assert {row: logits.tolist() for row, logits in other.logits.items()} == {0: [3.0, 4.0], 1: [1.0, 2.0]}


# reservoirs


@pytest.fixture
def benchmark(make_table):
    table = make_table(num_classes=6, per_class=10)
    return class_incremental(Scenario(order_seed=-1), table, table, 2)


def after(benchmark, t, seed=0):
    """A run at the end of its experience `t`."""
    return State(nn.Identity(), benchmark.info, seed, current=benchmark.train_stream[t], trained=t)


def offer(memory, benchmark, count):
    for t in range(count):
        memory.after_training_exp(after(benchmark, t))


def test_a_memory_holds_as_many_as_it_may_of_all_that_came(benchmark):
    memory = Reservoir(12)
    offer(memory, benchmark, 3)
    rows = memory.rows
    assert len(rows) == len(set(rows.tolist())) == 12
    assert memory.stored_bytes == 12 * 3 * 16 * 16


def test_every_image_has_the_same_chance(benchmark):
    counts = np.zeros(60)
    for seed in range(300):
        memory = Reservoir(12)
        for t in range(3):
            memory.after_training_exp(after(benchmark, t, seed))
        counts[memory.rows] += 1
    # each count is binomial(300, 1/5): mean 60, standard deviation 6.9
    assert abs(counts[:20].mean() - 60) < 4 and abs(counts[40:].mean() - 60) < 4
    assert counts.min() > 30 and counts.max() < 90


def test_every_image_has_the_same_chance_in_a_stream_without_boundaries(benchmark):
    counts = np.zeros(60)
    stream = replace(benchmark.train_stream[0], rows=np.arange(60), ordered=True, boundary=False)
    for seed in range(300):
        memory, s = Reservoir(12), State(nn.Identity(), benchmark.info, seed, current=stream)
        for s.step in range(1, 13):
            memory.after_training_iteration(Step(s, np.arange(5 * s.step - 5, 5 * s.step)))
        counts[memory.rows] += 1
    assert abs(counts[:20].mean() - 60) < 4 and abs(counts[40:].mean() - 60) < 4
    assert counts.min() > 30 and counts.max() < 90


def test_steps_fill_no_memory_where_experiences_have_boundaries(benchmark):
    memory = Reservoir(12)
    memory.after_training_iteration(Step(after(benchmark, 0), np.arange(5)))
    assert memory.rows.tolist() == []


def test_per_class_holds_the_same_number_of_each(benchmark):
    memory = Reservoir(3, per_class=True)
    offer(memory, benchmark, 2)
    labels = benchmark.train_table.labels[memory.rows]
    assert np.bincount(labels, minlength=6).tolist() == [3, 3, 3, 3, 0, 0]


def test_replays_as_many_as_the_stream_brings_and_only_earlier_images(benchmark):
    memory = Reservoir(8)
    s = Step(after(benchmark, 1), np.arange(20, 25))
    memory.before_training_iteration(s)
    assert s.replay is None, "nothing was learned yet"
    offer(memory, benchmark, 1)
    memory.before_training_iteration(s)
    assert len(s.replay) == 5 and set(s.replay) <= set(benchmark.train_stream[0].rows)
    memory.before_training_iteration(s)
    assert len(s.replay) == 10, "a second memory adds to the first"


def test_a_memory_goes_on_from_its_state(benchmark):
    memory, other = Reservoir(5, per_class=True), Reservoir(5, per_class=True)
    offer(memory, benchmark, 2)
    other.load(memory.state())
    assert other.rows.tolist() == memory.rows.tolist()
    for each in (memory, other):
        each.after_training_exp(after(benchmark, 2))
    assert other.rows.tolist() == memory.rows.tolist()
