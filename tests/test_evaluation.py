"""Evaluation: what learners are shown, among which classes they choose, and which experiences share batches."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from clsim.data.batches import Batch
from clsim.evaluation import Together, groups, predict, predict_rows
from clsim.outputs import Outputs
from clsim.tools import eval_batch

CPU = torch.device("cpu")


class Fixed(torch.nn.Module):
    """Gives every image the same logits, and remembers what it was shown."""

    def __init__(self, logits, task=None):
        super().__init__()
        self.logits, self.task, self.shown = torch.tensor(logits), task, []

    def forward(self, batch):
        self.shown.append(batch)
        logits = self.logits.expand(len(batch), -1)
        return logits if self.task is None else Outputs(logits, task=torch.full((len(batch),), self.task))


def ask(learner, count, allowed, task=None):
    batch = Batch(None, torch.zeros(4, 2))
    batches = iter([(4, batch)] * (count // 4) + [(count % 4, batch)] * bool(count % 4))
    return predict(learner, batches, allowed, contextlib.nullcontext, CPU, task)


@pytest.fixture
def tests_of(make_loop):
    """The loop's benchmark, and the loader of its test table."""
    loop = make_loop()
    return loop.benchmark, loop.test_loaders[loop.benchmark.test_table.fingerprint]


def test_evaluation_batches_carry_no_labels_and_always_the_same_number_of_images(tests_of):
    benchmark, loader = tests_of
    learner = Fixed([0.0] * 6)
    rows = np.resize(np.arange(len(benchmark.test_table)), 520)
    predicted = predict_rows(learner, loader, rows, (5, 3), contextlib.nullcontext)
    assert predicted.classes.tolist() == [5] * 520, "the first allowed class wins a tie"
    assert loader.reads == {"features"} and [len(batch) for batch in learner.shown] == [512] * 2
    assert all(batch.labels is None and batch.rows is None and batch.domains is None for batch in learner.shown)


def test_images_need_smaller_batches_than_features():
    assert eval_batch({"images"}) == eval_batch({"images", "features"}) == 64
    assert eval_batch({"features"}) == 512


def test_classes_not_yet_learned_are_never_predicted():
    assert ask(Fixed([0.0, 0, 0, 0, 0, 9]), 6, (0, 1)).classes.tolist() == [0] * 6
    assert ask(Fixed([0.0, 0, 0, 0, 0, 9]), 6, (4, 5)).classes.tolist() == [5] * 6


def test_images_that_only_fill_a_batch_up_are_left_out():
    found = ask(Fixed([1.0, 0.0], task=2), 6, (0, 1))
    assert found.classes.shape == found.tasks.shape == (6,)


def test_detected_tasks_are_given_where_the_method_detects_them():
    assert ask(Fixed([1.0, 0.0], task=2), 3, (0, 1)).tasks.tolist() == [2] * 3
    assert ask(Fixed([1.0, 0.0]), 3, (0, 1)).tasks is None


def test_the_task_is_told_only_where_there_is_one_to_tell():
    for task in (None, 1):
        learner = Fixed([1.0, 0.0])
        ask(learner, 3, (0, 1), task)
        assert [batch.task for batch in learner.shown] == [task]


def test_predictions_need_no_gradients():
    learner = Fixed([1.0, 0.0])
    learner.logits.requires_grad_()
    ask(learner, 3, (0, 1))
    assert learner(Batch(None, torch.zeros(1, 2))).grad_fn is not None, "while the learner would have some"


# which experiences are evaluated together


def test_experiences_share_batches_where_table_classes_and_task_are_the_same(tests_of, make_table):
    first, second, third = tests_of[0].test_stream
    together = groups([first, second, third], lambda column: (0, 1, 2))
    assert [group.columns for group in together] == [(first, second, third)]
    assert together[0].rows.tolist() == sorted(np.concatenate([first.rows, second.rows, third.rows]).tolist())
    assert together[0].classes == (0, 1, 2) and together[0].table == first.table.fingerprint
    told = replace(third, task_label=2)
    assert [group.columns for group in groups([first, told, second], lambda column: (0, 1))] == [
        (first, second),
        (told,),
    ]
    by_class = groups([first, second, third], lambda column: column.classes)
    assert [group.columns for group in by_class] == [(first,), (second,), (third,)]
    elsewhere = replace(second, table=make_table(6, 4))
    assert len(groups([first, elsewhere], lambda column: (0, 1))) == 2


def test_rows_of_a_group_ascend(tests_of):
    first, second, _ = tests_of[0].test_stream
    assert np.all(np.diff(Together((second, first), (0,)).rows) > 0)


# the tasks that a method detects, counted


class Detects(Fixed):
    """Says that every image is of the experience 1."""

    def __init__(self):
        super().__init__([0.0] * 6, task=1)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        made = super().forward(batch)
        return replace(made, logits=made.logits + self.weight)


def detecting(loop):
    loop.state.learner = loop.tools.learner = Detects()
    return loop


def test_task_accuracy_by_hand(make_loop):
    loop = detecting(make_loop())
    loop.run()
    # 8 test images of each experience; those of the second are rightly detected, once it is tested
    assert loop.state.task_correct == [[0, None, None], [0, 8, None], [0, 8, 0]]
    assert loop.task_accuracy() == loop.measures().values["task_accuracy"] == pytest.approx(8 / 24)


@pytest.mark.parametrize("scenario", [{"protocol": "task"}, {"protocol": "pair"}])
def test_tasks_are_not_counted_where_they_are_told_or_no_experience_is_tested(make_loop, scenario):
    loop = detecting(make_loop(scenario=scenario))
    loop.run()
    assert loop.state.task_correct == [] and loop.task_accuracy() is None
    assert "task_accuracy" not in loop.measures().values


def test_tasks_are_counted_in_a_domain_stream_from_the_row_before_training_on(make_loop):
    loop = detecting(make_loop(scenario={"protocol": "domain", "train_per_class": 2}, epochs=1))
    loop.run()
    assert loop.state.task_correct == [[0, 24, 0]] * 4
    assert loop.task_accuracy() == pytest.approx(24 / 72)
