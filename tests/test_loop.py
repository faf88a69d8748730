"""Events, their order, and the loop's care for labels and numbers."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from clsim import config, runner
from clsim.errors import RunFailed
from clsim.events import EVENTS, Part, State
from clsim.learner import build_learner
from clsim.loop import EVAL_BATCH, Loop, predict_rows
from clsim.strategies.linear import Linear
from clsim.strategy import Strategy


class Spy(Part):
    """Writes down every event."""

    def __init__(self):
        self.heard = []


for _event in EVENTS:
    setattr(Spy, _event, lambda self, s, event=_event: self.heard.append(event))


def make_loop(tmp_path, strategy="linear", parts=(), **fields):
    options = {"strategy": strategy, "backbone": "vit_nano", "out": tmp_path, "precision": "fp32"}
    small = {"scenario.train_per_class": "8", "scenario.test_per_class": "4", "epochs": "2", "batch_size": "8"}
    (only,) = config.plan(options, small | fields, None)
    job = runner.Job.prepare(only)
    info = job.benchmark.info
    learner, tower = build_learner(job.strategy, job.backbone, info, 0, torch.device("cpu"), bf16=False)
    train, test = (
        job._loader(t, tower, torch.device("cpu")) for t in (job.benchmark.train_table, job.benchmark.test_table)
    )
    tests, state = {test.table.fingerprint: test}, State(learner, info, 0)
    return Loop(job.strategy, job.benchmark, train, tests, state, parts, False, save=lambda loop: None)


def loader_of_tests(loop):
    return loop.test_loaders[loop.benchmark.test_table.fingerprint]


def test_events_come_in_order(tmp_path):
    spy = Spy()
    make_loop(tmp_path, parts=[spy]).run()
    iteration = [
        event for event in EVENTS if "iteration" in event or event.split("_", 1)[1] in ("forward", "backward", "update")
    ]
    assert iteration[0] == "before_training_iteration" and iteration[-1] == "after_training_iteration"
    epoch = ["before_training_epoch", *iteration * 2, "after_training_epoch"]

    def experience(columns):
        tests = ["before_eval", *["before_eval_exp", "after_eval_exp"] * columns, "after_eval"]
        return ["before_training_exp", *epoch * 2, "after_training_exp", *tests]

    learned = [event for t in range(1, 6) for event in experience(t)]
    assert spy.heard == ["before_training", *learned, "after_training"]


def test_a_misspelt_event_is_an_error_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"Wrong\.after_epoch names no event.*after_training_epoch"):
        type("Wrong", (Part,), {"after_epoch": lambda self, s: None})
    with pytest.raises(TypeError, match="names no event"):
        type("Wrong", (Strategy,), {"before_train": lambda self, s: None})


def test_strategy_answers_before_its_parts(tmp_path):
    heard = []

    @dataclass(kw_only=True)
    class Loud(Linear):
        def after_training_exp(self, s):
            heard.append("strategy")

    class Quiet(Part):
        def after_training_exp(self, s):
            heard.append("part")

    loop = make_loop(tmp_path, parts=[Quiet()])
    loop.strategy = Loud(epochs=1)
    loop.run()
    assert heard == ["strategy", "part"] * 5


def test_evaluation_batches_carry_no_labels_and_always_the_same_number_of_images(tmp_path):
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, batch):
            seen.append(batch)
            return torch.zeros(len(batch), 10)

    loop = make_loop(tmp_path)
    rows = np.arange(70)
    predicted = predict_rows(Watch(), loader_of_tests(loop), rows, (7, 3), loop._autocast)
    assert predicted.tolist() == [7] * 70, "the first allowed class wins a tie"
    assert [len(batch) for batch in seen] == [EVAL_BATCH] * 2
    assert all(batch.labels is None and batch.rows is None and batch.domains is None for batch in seen)


def test_classes_not_yet_learned_are_never_predicted(tmp_path):
    class Second(torch.nn.Module):
        def forward(self, batch):
            logits = torch.zeros(len(batch), 10)
            logits[:, 5] = 9
            return logits

    loop = make_loop(tmp_path)
    allowed = loop.benchmark.train_stream[0].classes
    assert 5 not in allowed
    assert set(predict_rows(Second(), loader_of_tests(loop), np.arange(20), allowed, loop._autocast)) <= set(allowed)


def test_rows_of_the_class_protocol_end_at_the_diagonal(tmp_path):
    loop = make_loop(tmp_path)
    loop.run()
    assert [[cell is not None for cell in row] for row in loop.state.correct] == [
        [j <= t for j in range(5)] for t in range(5)
    ]


def test_task_protocol_tells_apart_only_the_tasks_own_classes(tmp_path, monkeypatch):
    asked = {}
    for protocol in ("class", "task"):
        asked[protocol] = []
        monkeypatch.setattr(
            "clsim.loop.predict_rows",
            lambda *args, kept=asked[protocol]: kept.append(args[3]) or predict_rows(*args),
        )
        loop = make_loop(tmp_path, **{"scenario.protocol": protocol})
        loop.run()
    own = [experience.classes for experience in loop.benchmark.train_stream]
    assert asked["task"] == [own[j] for t in range(5) for j in range(t + 1)]
    assert asked["class"] == [tuple(sorted(sum(own[: t + 1], ()))) for t in range(5)]


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    class Spoil(Part):
        def before_backward(self, s):
            if s.step == 3:
                s.loss = s.loss * float("nan")

    loop = make_loop(tmp_path, parts=[Spoil()])
    with pytest.raises(RunFailed, match="the loss is nan at step 3"):
        loop.run()


def test_cosine_schedule_falls_to_zero_within_each_experience(tmp_path):
    rates = []

    class Rate(Part):
        def after_update(self, s):
            rates.append(s.optimizer.param_groups[0]["lr"])

    make_loop(tmp_path, parts=[Rate()], schedule="cosine", lr="0.1").run()
    assert rates[:4] == pytest.approx([0.1 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)])
    assert rates[4:8] == pytest.approx(rates[:4])


def test_what_parts_do_after_an_experience_counts_as_training(tmp_path):
    class Slow(Part):
        def after_training_exp(self, s):
            time.sleep(0.2)

    loop = make_loop(tmp_path, parts=[Slow()])
    loop.run()
    assert loop.cost.seconds_training > 1


def test_joint_resumes_between_epochs_with_its_optimizer(tmp_path):
    saved = []
    loop = make_loop(tmp_path, "joint", epochs="3")
    loop.save = lambda loop: saved.append((loop.state.epoch, loop.state.optimizer is not None))
    loop.run()
    assert saved == [(1, True), (2, True), (0, True)]
