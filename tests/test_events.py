"""What a plug-in's class is checked for when it is made, and what State and Step give and refuse."""

import numpy as np
import pytest
import torch
from torch import nn

from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.events import CALLED, EVENTS, STEP_EVENTS, Part, State, Step
from clsim.outputs import Outputs
from clsim.strategy import Strategy, allowed_classes, cross_entropy

INFO = StreamInfo(tuple("abcdef"), (), "class", 3)


class Now:
    """An experience, as far as a loss asks for it."""

    classes = (2, 3)


@pytest.fixture
def run():
    return State(nn.Linear(2, 6), INFO, 0, seen=(0, 1, 2, 3), current=Now)


@pytest.fixture
def step(run):
    """The images of classes 2 and 3 are the stream's; a third one is replayed."""
    s = Step(run, np.arange(2), Batch(torch.zeros(3, 1), labels=torch.tensor([2, 3, 0]), replayed=1))
    s.outputs = Outputs(torch.tensor([[0.0, 1, 2, 3, 4, 5], [5.0, 4, 3, 2, 1, 0], [1.0, 1, 1, 1, 9, 9]]))
    return s


# names and signatures


def test_a_misspelt_event_is_an_error_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"Wrong\.after_epoch names no event.*after_training_epoch"):
        type("Wrong", (Part,), {"after_epoch": lambda self, s: None})
    with pytest.raises(TypeError, match="names no event"):
        type("Wrong", (Strategy,), {"before_train": lambda self, s: None})


@pytest.mark.parametrize("name", CALLED)
def test_a_method_that_cannot_take_what_it_is_given_is_an_error_when_the_class_is_made(name):
    wanted = ", ".join(("self", *CALLED[name]))
    with pytest.raises(TypeError, match=rf"Wrong\.{name}\(self, a, b, c\) must take \({wanted}\)"):
        type("Wrong", (Strategy,), {name: lambda self, a, b, c: None})
    with pytest.raises(TypeError, match=rf"Wrong\.{name}\(\) must take"):
        type("Wrong", (Part,), {name: lambda: None})


@pytest.mark.parametrize("name", CALLED)
def test_any_method_that_can_take_it_is_allowed(name):
    given = CALLED[name]
    made = type("Fine", (Strategy,), {name: lambda self, *args, more=None, **others: args})
    assert getattr(made(), name)(*given) == given
    type("Static", (Part,), {name: staticmethod(lambda *args: None)})


def test_events_of_steps_are_events():
    assert set(STEP_EVENTS) < set(EVENTS) < set(CALLED)
    assert len(set(EVENTS)) == len(EVENTS)


# State


def test_what_does_not_exist_raises_and_is_named():
    s = State(nn.Identity(), INFO, 0)
    for name, words in (("experience", "experience before the first one"), ("optimizer", "optimizer outside")):
        with pytest.raises(RuntimeError, match=f"there is no {words}"):
            getattr(s, name)
    with pytest.raises(RuntimeError, match="has no tools"):
        s.forward(Batch(torch.zeros(1, 1)))
    s.log("value", 1.0)  # nobody listens


def test_progress_is_the_share_of_the_experiences_updates_that_are_done(run):
    assert run.progress == 0.0, "no updates at all: a closed form"
    run.exp_first, run.exp_steps, run.step = 10, 8, 12
    assert run.progress == 0.25


def test_sets_of_classes_are_made_once_for_each(run):
    mask = run.class_mask((4, 1))
    assert mask.tolist() == [False, True, False, False, True, False] and mask.dtype == torch.bool
    assert run.class_ids((4, 1)).tolist() == [4, 1]
    assert run.class_mask((4, 1)) is mask and run.class_ids([4, 1]) is run.class_ids((4, 1))
    assert run.class_ids(()).tolist() == []


def test_a_learner_of_another_kind_is_an_error(run, step):
    assert run.learner_as(nn.Linear) is step.learner_as(nn.Module) is run.learner
    with pytest.raises(TypeError, match="a Conv2d is needed here, not Linear"):
        step.learner_as(nn.Conv2d)
    assert step.outputs_as(Outputs) is step.outputs


# Step


def test_a_step_is_its_run_with_what_is_its_own(run, step):
    run.step, run.epoch = 7, 2
    for name in ("learner", "info", "seed", "mask", "experience", "trained", "seen", "epoch", "step", "progress"):
        assert getattr(step, name) is getattr(run, name) or getattr(step, name) == getattr(run, name)
    assert step.class_mask((1,)) is run.class_mask((1,))
    assert step.logits is step.outputs.logits
    assert not hasattr(run, "batch") and not hasattr(run, "loss")


def test_a_steps_own_values_raise_before_they_exist(run):
    s = Step(run, np.arange(2))
    assert s.replay is None
    for name, words in (
        ("batch", "batch before before_forward"),
        ("outputs", "outputs before after_forward"),
        ("logits", "outputs before after_forward"),
        ("loss", "loss before before_backward"),
    ):
        with pytest.raises(RuntimeError, match=words):
            getattr(s, name)
    s.loss = torch.tensor(2.0)
    assert s.loss == 2


# the loss


def test_mask_decides_which_logits_the_softmax_includes(step):
    assert allowed_classes(step, "current").int().tolist() == [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]]
    assert allowed_classes(step, "seen").int().tolist() == [[1, 1, 1, 1, 0, 0]] * 3
    assert allowed_classes(step, "all").all()


def softmax(*logits):
    exponents = np.exp(np.array(logits))
    return np.log(exponents / exponents.sum())


def test_cross_entropy_by_hand(step):
    # stream: classes 2 and 3 with logits (2, 3) and (3, 2); replayed: class 0 of four equal ones
    current = -(softmax(2, 3)[0] + softmax(3, 2)[1] + softmax(1, 1, 1, 1)[0]) / 3
    assert cross_entropy(step, "current").item() == pytest.approx(current)
    seen = -(softmax(0, 1, 2, 3)[2] + softmax(5, 4, 3, 2)[3] + softmax(1, 1, 1, 1)[0]) / 3
    assert cross_entropy(step, "seen").item() == pytest.approx(seen)


def test_label_smoothing_spreads_over_the_classes_in_the_softmax_alone(step):
    # with 0.3: the target of an image among two classes is (0.85, 0.15), among four (0.775, 0.075, 0.075, 0.075)
    first = 0.85 * softmax(2, 3)[0] + 0.15 * softmax(2, 3)[1]
    second = 0.85 * softmax(3, 2)[1] + 0.15 * softmax(3, 2)[0]
    third = softmax(1, 1, 1, 1)[0]  # all equal, so the spread changes nothing
    expected = pytest.approx(-(first + second + third) / 3)
    assert cross_entropy(step, "current", 0.3).item() == expected
    everywhere = nn.functional.cross_entropy(step.logits, step.batch.labels, label_smoothing=0.3)
    assert cross_entropy(step, "all", 0.3).item() == pytest.approx(everywhere.item())
    assert Strategy(label_smoothing=0.3, mask="current").loss(step).item() == pytest.approx(
        -(first + second + third) / 3
    )


def test_label_smoothing_has_finite_gradients_where_logits_are_masked(step):
    logits = step.logits.clone().requires_grad_()
    step.outputs = Outputs(logits)
    cross_entropy(step, "current", 0.3).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, [0, 1, 4, 5]].tolist() == [0] * 4
