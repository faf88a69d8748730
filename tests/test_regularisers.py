"""EWC, LwF and DER++: their formulas by hand, their state, and every strategy that trains under all of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from clsim import checkpoint, config, plugins, runner
from clsim.data.batches import Batch
from clsim.data.streams import Scenario, class_incremental
from clsim.errors import RequestError
from clsim.events import State
from clsim.named_parts import named_part
from clsim.parts.der import Der
from clsim.parts.ewc import Ewc
from clsim.parts.lwf import Lwf, distillation
from clsim.strategy import Strategy

ALL = "ewc:10,lwf:0.5,der:0.1:0.5:12,er:6"


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


def features(values, labels):
    return Batch(None, torch.tensor(values), torch.tensor(labels))


@pytest.fixture
def benchmark(make_table):
    return class_incremental(Scenario(order_seed=-1), make_table(2, 1), make_table(2, 1), 2)


@pytest.fixture
def s(benchmark):
    """A run that stands at the end of its first experience: two images of two classes."""
    learner = Plane()
    state = State(learner, benchmark.info, 0, benchmark.train_stream[0], seen=(0, 1), mask="seen")
    state.forward = lambda batch, weights: (
        learner(batch) if weights is None else torch.func.functional_call(learner, weights, (batch,))
    )
    state.clean_batches = lambda: iter([features([[1.0, 2.0], [3.0, 0.0]], [0, 1])])
    return state


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
    s.loss = torch.tensor(0.25)
    ewc.before_backward(s)
    assert s.loss == 0.25, "nothing to hold on to in the first experience"
    ewc.after_training_exp(s)
    with torch.no_grad():
        s.learner.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    ewc.before_backward(s)
    # 4 / 2 * (1.25 * 1 + 0.5 * 4)
    assert s.loss.item() == pytest.approx(0.25 + 6.5)
    s.loss.backward()
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
    other = Ewc(1.0)
    other.load(ewc.state())
    s.loss = torch.tensor(0.0)
    other.before_backward(s)
    assert s.loss == 0.0 and torch.equal(other.fisher["weight"], ewc.fisher["weight"])


def test_ewc_tells_apart_what_the_training_loss_tells_apart(s):
    for mask, zero in (("current", True), ("seen", False)):
        s.experience = class_of_one(s.experience)
        s.mask, ewc = mask, Ewc(1.0)
        s.clean_batches = lambda: iter([features([[1.0, 2.0]], [0])])
        ewc.after_training_exp(s)
        # among one class alone nothing can be told apart: the likelihood is 1 whatever the weights
        assert (ewc.fisher["weight"].sum().item() == 0) == zero


def class_of_one(experience):
    from dataclasses import replace

    return replace(experience, classes=(0,), rows=experience.rows[:1])


# LwF


def test_distillation_by_hand():
    taught = torch.tensor([[0.0, 2 * math.log(3), 50.0]])  # softened: 1/4 and 3/4; class 2 is new
    assert distillation(torch.zeros(1, 3), taught, (0, 1)).item() == pytest.approx(math.log(2))
    student = torch.tensor([[2 * math.log(3), 0.0, -7.0]])  # softened: 3/4 and 1/4
    expected = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert distillation(student, taught, (0, 1)).item() == pytest.approx(expected, abs=1e-6)


def test_lwf_teaches_with_the_weights_of_before_the_experience_on_the_same_batch(s):
    lwf = Lwf(3.0)
    s.batch = features([[1.0, 0.0]], [1])
    s.learner.train()
    s.loss, s.logits = torch.tensor(0.5), s.forward(s.batch, None)
    lwf.before_training_exp(s)
    lwf.before_backward(s)
    assert s.loss == 0.5 and lwf.stored_bytes == 0, "nobody to learn from in the first experience"
    with torch.no_grad():
        s.learner.weight.copy_(torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0]]))
    lwf.after_training_exp(s)
    lwf.before_training_exp(s)
    assert lwf.stored_bytes == 4 * 4 + 4, "weights that learn and the buffer, not the frozen ones"
    with torch.no_grad():
        s.learner.weight.zero_()
    s.learner.weight.grad = None
    s.logits = s.forward(s.batch, None)
    lwf.before_backward(s)
    assert s.loss.item() == pytest.approx(0.5 + 3 * math.log(2))
    assert s.learner.training and s.learner.calls == 2, "the teacher leaves no trace in the learner"
    s.loss.backward()
    # d/dz of the cross-entropy at temperature 2: (q - p) / 2 = (1/2 - 1/4, 1/2 - 3/4) / 2
    assert torch.allclose(s.learner.weight.grad[:, 0], 3 * torch.tensor([0.125, -0.125]))


# DER++


def test_der_adds_squared_differences_and_cross_entropy_on_two_draws(make_table):
    table = make_table(4, 5)
    benchmark = class_incremental(Scenario(order_seed=-1), table, table, 2)
    s = State(Plane(3, 4), benchmark.info, 0, benchmark.train_stream[0], seen=(0, 1), mask="current")
    der = Der(0.5, 2.0, 3)
    s.rows, s.loss = s.experience.rows, torch.tensor(1.0)
    s.logits = torch.arange(40.0).reshape(10, 4)
    der.after_forward(s)
    der.before_backward(s)
    assert s.loss == 1.0, "nothing is remembered before the first experience is learned"
    s.logits = s.logits + 1
    der.after_forward(s)  # the last step counts
    der.after_training_exp(s)
    assert der.memory.rows.tolist() == list(der.logits) and len(der.logits) == 3
    for row, stored in der.logits.items():
        assert stored.tolist() == [4.0 * row + 1 + k for k in range(4)]
    assert der.stored_bytes == 3 * (3 * 16 * 16 + 4 * 4)
    s.experience, s.seen, s.rows = benchmark.train_stream[1], (0, 1, 2), np.array([10, 11])
    asked = []

    def replay_batch(rows, name):
        asked.append(rows)
        return Batch(None, torch.zeros(len(rows), 3), torch.from_numpy(table.labels[rows]), rows)

    s.replay_batch, s.forward = replay_batch, lambda batch, weights: s.learner(batch)
    der.before_backward(s)
    (rows,) = asked
    assert len(rows) == 4 and set(rows.tolist()) <= set(der.logits)
    # the learner's logits are all zero: mean square of what is stored, and log 3 for three classes seen
    square = np.mean([value**2 for row in rows[:2] for value in der.logits[row].tolist()])
    assert s.loss.item() == pytest.approx(1 + 0.5 * square + 2 * math.log(3), rel=1e-6)
    other = Der(0.5, 2.0, 3)
    other.load(der.state())
    assert list(other.logits) == list(der.logits) and other.stored_bytes == der.stored_bytes
    assert all(torch.equal(other.logits[row], der.logits[row]) for row in der.logits)


def test_draws_for_logits_and_labels_are_independent(make_table):
    table = make_table(2, 50)
    benchmark = class_incremental(Scenario(order_seed=-1), table, table, 2)
    s = State(Plane(3, 2), benchmark.info, 0, benchmark.train_stream[0], rows=np.arange(20))
    memory = Der(1.0, 1.0, 60).memory
    memory.after_training_exp(s)
    pairs = {}
    for s.step in range(50):
        a, b = memory.draw(s, "replay of logits"), memory.draw(s, "replay of labels")
        pairs[s.step] = len(set(a.tolist()) & set(b.tolist()))
    assert 4 < np.mean(list(pairs.values())) < 9  # 20 of 60 twice: 6.7 in common


def test_checkpoints_inside_an_experience_keep_the_latest_logits_and_the_teacher(s, tmp_path):
    s.rows, s.loss = s.experience.rows[::-1].copy(), torch.tensor(0.0)
    s.logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    dark, lwf = Der(1.0, 1.0, 5), Lwf(1.0)
    dark.after_forward(s)
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


# on the command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ewc:1:2", "write ewc:STRENGTH or ewc,strength=VALUE"),
        ("ewc:-1", "ewc:-1: strength must be a number of at least 0, not -1.0"),
        ("ewc:nan", "ewc:nan: strength must be a number, not 'nan'"),
        ("lwf:x", "lwf:x: alpha must be a number, not 'x'"),
        ("der:1:1", "der:1:1: write der:ALPHA:BETA:SIZE or der,alpha=VALUE"),
        ("der:1:1:0", "der:1:1:0: .*at least 1 image"),
        ("der:1:-1:5", "beta must be a number of at least 0, not -1.0"),
        ("der,alpha=1,bets=2", r"no field 'bets' \(did you mean 'beta'\?\); there are: alpha, beta, size"),
        ("ewcc:1", "did you mean 'ewc'"),
    ],
)
def test_mistakes_in_parts(text, words):
    with pytest.raises(RequestError, match=words):
        named_part(text)


def test_a_method_without_a_loss_takes_no_regulariser(tmp_path):
    with pytest.raises(RequestError, match="ewc:10 adds to the training loss, and ncm learns without one"):
        plan("ncm", tmp_path, "er:5,ewc:10")
    assert plan("ncm", tmp_path, "er:5").parts == ("er:5",)


# in runs


SMALL = {"train_per_class": "6", "test_per_class": "3", "classes_per_experience": "5"}


def plan(strategy, out, parts, precision="fp32"):
    backbone = "clip_nano" if plugins.load("strategies", strategy)().needs_text else "vit_nano"
    options = {"strategy": strategy, "backbone": backbone, "precision": precision, "with": parts, "threads": 1}
    fields = {f"scenario.{name}": value for name, value in SMALL.items()} | {"epochs": "2", "batch_size": "16"}
    (only,) = config.plan(options | {"out": out}, fields, None)
    return only


def finished(*args, **fields):
    (run,) = runner.run_all([plan(*args, **fields)], quiet=True)
    return run


def final(run):
    return checkpoint.load(run.directory / "checkpoint")["learner"]


def trains(name):
    return plugins.load("strategies", name).fit is Strategy.fit


@pytest.mark.parametrize("name", [name for name in plugins.names("strategies") if trains(name)])
def test_every_strategy_that_trains_takes_all_of_them_and_resumes_bit_identical(name, tmp_path, monkeypatch):
    whole = finished(name, tmp_path / "whole", ALL)
    assert whole.summary["cost"]["memory_bytes"] > 18 * 3 * 8 * 8  # images, logits, importances and copies
    saves = []

    def save(*args):
        if saves:
            raise KeyboardInterrupt
        saves.append(1)
        checkpoint.save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(runner.checkpoint, "save", save)
        try:
            finished(name, tmp_path / "broken", ALL)
        except KeyboardInterrupt:
            assert not list((tmp_path / "broken").rglob("summary.json"))
    resumed = finished(name, tmp_path / "broken", ALL)
    assert resumed.matrix == whole.matrix and resumed.metrics == whole.metrics
    assert all(torch.equal(tensor, final(whole)[key]) for key, tensor in final(resumed).items())
    assert resumed.summary["cost"]["memory_bytes"] == whole.summary["cost"]["memory_bytes"]


@pytest.mark.parametrize("name", ["finetune", "linear"])
def test_terms_of_no_weight_change_nothing_and_each_other_term_does(name, tmp_path):
    plain, zero = finished(name, tmp_path, ()), finished(name, tmp_path, "ewc:0,lwf:0,der:0:0:12")
    assert all(torch.equal(tensor, final(zero)[key]) for key, tensor in final(plain).items())
    for part in ("ewc:10", "lwf:1", "der:1:0:12", "der:0:1:12"):
        other = final(finished(name, tmp_path, part))
        assert not torch.equal(final(plain)["head.weight"], other["head.weight"]), part


@pytest.mark.parametrize("name", ["finetune", "linear", "l2p"])
def test_bfloat16(name, tmp_path):
    run = finished(name, tmp_path, ALL, precision="bf16")
    assert all(torch.isfinite(tensor).all() for tensor in final(run).values() if tensor.is_floating_point())


def test_stiff_springs_hold_what_was_learned(tmp_path):
    """Against the anchor after the first of two experiences, weighed by importance."""
    strain = {}
    for part in ("ewc:0", "ewc:1000"):
        anchors = []

        class Note(Ewc):
            def after_training_exp(self, s, anchors=anchors):
                if self.anchor:
                    energy = [(self.fisher[k] * (p - self.anchor[k]) ** 2).sum() for k, p in learned(s)]
                    anchors.append(torch.stack(energy).sum().item())
                super().after_training_exp(s)

        def learned(s):
            return [(name, p.detach()) for name, p in s.learner.named_parameters() if p.requires_grad]

        strain[part] = anchors
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("clsim.parts.ewc.Ewc", Note)
            finished("linear", tmp_path, part)
    assert 0 < strain["ewc:1000"][0] < 0.2 * strain["ewc:0"][0]
