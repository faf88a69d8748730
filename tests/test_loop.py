"""The loop: events and their order, rates, what stops it, streams without boundaries."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from clsim.errors import RequestError, RunFailed
from clsim.events import EVENTS, STEP_EVENTS, Part, State, Step
from clsim.strategies.linear import Linear

pytestmark = pytest.mark.usefixtures("without_pictures")

ENDLESS = {"ordered": True, "boundary": False}  # one long stream; methods are not told of experiences


class Spy(Part):
    """Writes down every event, and what it came with."""

    def __init__(self):
        self.heard = []
        self.given = {}


def _hear(event):
    def handler(self, s):
        self.heard.append(event)
        self.given[event] = type(s)

    return handler


for _event in EVENTS:
    setattr(Spy, _event, _hear(_event))


# events


def test_events_come_in_order(make_loop):
    spy = Spy()
    make_loop(parts=[spy]).run()
    epoch = ["before_training_epoch", *STEP_EVENTS * 3, "after_training_epoch"]

    def experience(columns):
        tests = ["before_eval", *["before_eval_exp", "after_eval_exp"] * columns, "after_eval"]
        return ["before_training_exp", *epoch * 2, "after_training_exp", *tests]

    learned = [event for t in range(1, 4) for event in experience(t)]
    assert spy.heard == ["before_training", *learned, "after_training"]
    assert STEP_EVENTS[0] == "before_training_iteration" and STEP_EVENTS[-1] == "after_training_iteration"


def test_events_of_an_update_come_with_a_step_and_the_others_with_the_runs_state(make_loop):
    spy = Spy()
    make_loop(parts=[spy], eval_every=4).run()
    assert spy.given == {event: Step if event in STEP_EVENTS else State for event in EVENTS}


def test_strategy_answers_before_its_parts(make_loop):
    heard = []

    @dataclass(kw_only=True)
    class Loud(Linear):
        def after_training_exp(self, s):
            heard.append("strategy")

    class Quiet(Part):
        def after_training_exp(self, s):
            heard.append("part")

    loop = make_loop(parts=[Quiet()])
    loop.strategy = Loud(epochs=1)
    loop.run()
    assert heard == ["strategy", "part"] * 3


def test_what_does_not_exist_at_the_time_is_an_error_that_names_it(make_loop):
    missing = {}

    class Ask(Part):
        def before_training(self, s):
            self.ask(s, "before_training", "experience", "optimizer")

        def before_training_exp(self, s):
            self.ask(s, "before_training_exp", "experience", "optimizer")

        def before_training_iteration(self, s):
            self.ask(s, "before_training_iteration", "batch", "outputs", "logits", "loss", "optimizer")

        def after_forward(self, s):
            self.ask(s, "after_forward", "batch", "logits", "loss")

        def before_backward(self, s):
            self.ask(s, "before_backward", "logits", "loss")

        def ask(self, s, event, *names):
            for name in names:
                try:
                    getattr(s, name)
                except RuntimeError as error:
                    missing.setdefault(event, {})[name] = str(error)

    make_loop(parts=[Ask()], epochs=1).run()
    assert {event: list(names) for event, names in missing.items()} == {
        "before_training": ["experience", "optimizer"],
        "before_training_exp": ["optimizer"],
        "before_training_iteration": ["batch", "outputs", "logits", "loss"],
        "after_forward": ["loss"],
    }
    assert missing["after_forward"]["loss"] == "there is no loss before before_backward"


def test_handlers_may_set_replayed_rows_and_the_loss(make_loop):
    sizes, losses = [], []

    class Set(Part):
        def before_training_iteration(self, s):
            s.replay = s.rows[:1]

        def before_backward(self, s):
            sizes.append((len(s.batch), s.batch.replayed, len(s.rows)))
            s.loss = s.loss * 0 + 7

        def after_update(self, s):
            losses.append(s.loss.item())

    make_loop(parts=[Set()], epochs=1).run()
    assert sizes == [(5, 1, 4)] * 9 and losses == [7.0] * 9


def test_what_parts_do_after_an_experience_counts_as_training(make_loop):
    class Slow(Part):
        def after_training_exp(self, s):
            time.sleep(0.2)

    loop = make_loop(parts=[Slow()])
    loop.run()
    assert loop.cost.seconds_training > 0.6


# what is tested


def test_rows_of_the_class_protocol_end_at_the_diagonal(make_loop):
    loop = make_loop()
    loop.run()
    assert [[cell is not None for cell in row] for row in loop.state.correct] == [
        [j <= t for j in range(3)] for t in range(3)
    ]


@pytest.mark.parametrize("compared", ["seen", "all"])
def test_all_classes_are_compared_in_evaluation_if_asked(make_loop, monkeypatch, compared):
    from clsim.evaluation import predict_rows

    allowed = []

    def watched(learner, loader, rows, classes, *args):
        allowed.append(tuple(sorted(classes)))
        return predict_rows(learner, loader, rows, classes, *args)

    monkeypatch.setattr("clsim.loop.predict_rows", watched)
    loop = make_loop(test_classes=compared, scenario={"order_seed": "-1"})
    loop.run()
    assert [len(classes) for classes in allowed] == ([2, 4, 6] if compared == "seen" else [6, 6, 6])
    assert [sum(cell is not None for cell in row) for row in loop.state.correct] == [1, 2, 3]


@pytest.mark.parametrize(("batch_size", "drop", "sizes"), [(5, False, [5, 5, 2]), (5, True, [5, 5]), (20, True, [12])])
def test_a_smaller_last_batch_is_left_out_if_asked_unless_it_is_the_only_one(make_loop, batch_size, drop, sizes):
    class Sizes(Part):
        found = ()

        def after_update(self, s):
            self.found = (*self.found, len(s.batch))

    watch = Sizes()
    loop = make_loop(parts=[watch], batch_size=batch_size, drop_last=drop)
    loop.run()
    assert list(watch.found) == sizes * 2 * 3, "twelve images, two passes, three experiences"
    assert loop.state.exp_steps == 2 * len(sizes) and loop.cost.images == 6 * sum(sizes)


@pytest.mark.parametrize("protocol", ["class", "task"])
def test_the_task_protocol_classifies_among_the_tasks_own_classes(make_loop, monkeypatch, protocol):
    asked = {}

    def watched(learner, loader, rows, allowed, *args):
        for row in rows.tolist():
            asked.setdefault(len(loop.state.correct), {})[row] = tuple(allowed)
        return predict_rows(learner, loader, rows, allowed, *args)

    from clsim.evaluation import predict_rows

    monkeypatch.setattr("clsim.loop.predict_rows", watched)
    loop = make_loop(scenario={"protocol": protocol})
    loop.run()
    tests = loop.benchmark.test_stream
    for t in range(3):
        seen = tuple(sorted(sum((each.classes for each in tests[: t + 1]), ())))
        for test in tests[: t + 1]:
            expected = test.classes if protocol == "task" else seen
            assert {asked[t][row] for row in test.rows.tolist()} == {expected}


# losses and rates


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(make_loop):
    class Spoil(Part):
        def before_backward(self, s):
            if s.step == 4:
                s.loss = s.loss * float("nan")

    with pytest.raises(RunFailed, match="the loss is nan at step 4"):
        make_loop(parts=[Spoil()]).run()


@pytest.mark.parametrize("passes", [-1, None, 1.5])
def test_a_wrong_number_of_epochs_stops_the_run_and_says_whose_it_is(make_loop, passes):
    loop = make_loop()
    loop.strategy.epochs_for = lambda experience: passes
    with pytest.raises(RunFailed, match=f"Linear.epochs_for must return a whole number of at least 0, not {passes}"):
        loop.run()


class Rates(Part):
    """Writes down the rates of the optimizer's groups at every update."""

    def __init__(self):
        self.rates = []

    def after_update(self, s):
        self.rates.append([group["lr"] for group in s.optimizer.param_groups])


def test_cosine_schedule_falls_to_zero_within_each_experience(make_loop):
    spy = Rates()
    make_loop(parts=[spy], schedule="cosine", lr=0.1).run()
    rates = [rate for (rate,) in spy.rates]
    assert rates[:6] == pytest.approx([0.1 * (1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)])
    assert rates[6:12] == pytest.approx(rates[:6])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cosine_epochs"])
def test_factors_of_head_and_backbone_hold_under_every_schedule_and_through_the_warm_up(make_loop, schedule):
    spy = Rates()
    fields = {"schedule": schedule, "warmup_epochs": 1, "warmup_lr": 0.004, "lr": 0.01, "epochs": 3}
    loop = make_loop("finetune", parts=[spy], head_lr=2.0, backbone_lr=0.5, **fields)
    loop.run()
    sizes = [sum(p.numel() for p in group["params"]) for group in loop.state.optimizer.param_groups]
    head = 32 * 6 + 6
    backbone = sum(p.numel() for p in loop.state.learner.parameters()) - head
    assert sorted(sizes) == [head, backbone]
    ratio = 4.0 if sizes[0] == head else 0.25
    assert [first / second for first, second in spy.rates] == pytest.approx([ratio] * 27)
    heads = [rates[sizes.index(head)] for rates in spy.rates[:9]]
    scale = {"constant": [1, 1], "cosine_epochs": [1, 0.75]}.get(schedule)
    if scale is not None:  # of `epochs`=3 one is the warm-up's
        assert heads == pytest.approx([0.008] * 3 + [0.02 * scale[0]] * 3 + [0.02 * scale[1]] * 3)
    else:
        assert heads[:4] == pytest.approx([0.008] * 3 + [0.02]) and heads[3:] == sorted(heads[3:], reverse=True)


@dataclass(kw_only=True)
class TwoRates(Linear):
    """A strategy whose own optimizer has a group with a tenth of the rate."""

    def configure_optimizer(self, learner):
        bias, weight = learner.head.bias, learner.head.weight
        return torch.optim.Adam([{"params": [weight]}, {"params": [bias], "lr": 0.1 * self.lr}], self.lr)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cosine_epochs"])
def test_a_users_own_groups_keep_their_ratio(make_loop, schedule):
    spy = Rates()
    loop = make_loop(parts=[spy])
    loop.strategy = TwoRates(epochs=3, batch_size=4, schedule=schedule, warmup_epochs=1, lr=0.01)
    loop.run()
    assert [small / large for large, small in spy.rates] == pytest.approx([0.1] * 27)
    assert [large for large, _ in spy.rates[:4]] == pytest.approx([1e-5] * 3 + [0.01])


@pytest.mark.parametrize("saves", [1, 7])  # within the warm-up, and after it
def test_ratios_hold_when_a_run_goes_on_inside_an_experience(tmp_path, broken_off, finished, same_run, saves):
    fields = {"head_lr": 3.0, "schedule": "cosine", "warmup_epochs": 1, "epochs": 4}
    whole = finished("finetune", tmp_path / "whole", **fields)
    saved = broken_off(saves, lambda: finished("finetune", tmp_path, checkpoint_minutes=0, **fields))
    assert saved["inside"] and saved["epoch"] == (0 if saves == 1 else 2) and saved["trained"] == 0
    first, second = saved["optimizer"]["param_groups"]
    assert max(first["lr"], second["lr"]) / min(first["lr"], second["lr"]) == pytest.approx(3)
    same_run(finished("finetune", tmp_path, checkpoint_minutes=0, **fields), whole)


# checkpoints


def test_joint_resumes_between_epochs_with_its_optimizer(make_loop):
    saved = []
    loop = make_loop("joint", epochs=3)
    loop.save = lambda loop: saved.append((loop.state.epoch, loop.inside, loop.state.made_optimizer is not None))
    loop.run()
    assert saved == [(1, True, True), (2, True, True), (0, False, True)]


def test_a_run_is_saved_inside_an_experience_only_when_its_time_has_come(make_loop):
    for seconds, expected in ((0.0, 3 * 6), (1e9, 3)):
        saved = []
        loop = make_loop()
        loop.save_seconds = seconds
        loop.save = lambda loop, saved=saved: saved.append(loop.state.step)
        loop.run()
        assert len(saved) == expected


# evaluations inside an experience


def test_evaluations_inside_an_experience_change_nothing_but_the_anytime_rows(tmp_path, finished, weights):
    plain, watched = finished("linear", tmp_path / "a"), finished("linear", tmp_path / "b", eval_every=8)
    assert plain.matrix == {key: value for key, value in watched.matrix.items() if key != "anytime"}
    ours, theirs = weights(plain), weights(watched)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = watched.matrix["anytime"]
    # after every second step of four images, but for the last of an experience, which the matrix has
    assert [row["step"] for row in rows] == [2, 4, 8, 10, 14, 16]
    assert [row["images"] for row in rows] == [8, 16, 32, 40, 56, 64]
    assert [[count is not None for count in row["correct"]] for row in rows[::2]] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


# streams without boundaries


class Order(Part):
    """Writes down which rows came, and the classes that were known when they did."""

    needs_boundaries = False

    def __init__(self):
        self.rows, self.seen = [], []

    def before_training_iteration(self, s):
        self.rows += s.rows.tolist()
        self.seen.append(s.seen)


def test_a_stream_without_boundaries_is_learned_once_in_the_order_of_arrival(make_loop):
    spy, order = Spy(), Order()
    loop = make_loop(parts=[spy, order], scenario=ENDLESS, epochs=5)
    loop.run()
    assert order.rows == np.concatenate([each.rows for each in loop.benchmark.train_stream]).tolist()
    assert not {"before_training_exp", "after_training_exp"} & set(spy.heard)
    assert spy.heard.count("after_training_iteration") == 9


def test_without_boundaries_the_classes_seen_are_those_whose_images_came(make_loop):
    order = Order()
    loop = make_loop(parts=[order], scenario=ENDLESS, batch_size=3)
    loop.run()
    labels = loop.benchmark.train_table.labels
    came = [tuple(np.unique(labels[order.rows[: 3 * (i + 1)]]).tolist()) for i in range(12)]
    assert order.seen == came and len(came[0]) == 1, "images come class by class, six of each"


@pytest.mark.parametrize("name", ["finetune", "linear", "er"])
def test_without_boundaries_a_run_resumes_anywhere_and_may_be_watched(
    name, tmp_path, broken_off, finished, same_run, weights
):
    whole = finished(name, tmp_path / "whole", ENDLESS)
    saved = broken_off(4, lambda: finished(name, tmp_path / "broken", ENDLESS, checkpoint_minutes=0))
    assert saved["inside"] and saved["trained"] == 1 and saved["epoch_steps"] == 1
    assert saved["optimizer"] is not None and saved["begun"] == []
    same_run(finished(name, tmp_path / "broken", ENDLESS, checkpoint_minutes=0), whole)
    between = broken_off(1, lambda: finished(name, tmp_path / "between", ENDLESS))
    assert not between["inside"] and between["optimizer"] is not None, "one optimizer learns the whole stream"
    same_run(finished(name, tmp_path / "between", ENDLESS), whole)
    watched = finished(name, tmp_path / "watched", ENDLESS, eval_every=4)
    assert [row["images"] for row in watched.matrix["anytime"]] == [4, 8, 16, 20, 28, 32]
    ours, theirs = weights(whole), weights(watched)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("coda_prompt", {}, "coda_prompt"),
        ("ncm", {}, "ncm"),
        ("slda", {}, "slda"),
        ("gdumb", {}, "gdumb"),
        ("finetune", {"mask": "current"}, "finetune"),
        ("linear", {"with": "lwf:1"}, "Lwf"),
    ],
)
def test_what_needs_boundaries_is_refused_by_name_on_a_stream_without(name, fields, named, tmp_path, prepare):
    with pytest.raises(RequestError, match=f"{named} must know where an experience begins and ends"):
        prepare(name, tmp_path, ENDLESS, **fields)
    assert prepare(name, tmp_path, **fields).strategy is not None


def test_closed_forms_run_in_float32_in_a_bfloat16_run(make_loop):
    found = []

    @dataclass(kw_only=True)
    class Product(Linear):
        def epochs_for(self, experience):
            return 0

        def fit(self, s):
            found.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    loop = make_loop(precision="bf16")
    loop.strategy = Product()
    loop.run()
    assert set(found) == {torch.float32}


def test_a_step_that_spoils_the_weights_ends_the_run(make_loop):
    class Spoil(Part):
        def after_update(self, s):
            if s.step == 3:  # the last step of the experience: no loss is computed afterwards
                with torch.no_grad():
                    s.learner.head.weight[0, 0] = float("nan")

    loop = make_loop(epochs=1)
    loop.parts = [Spoil()]
    with pytest.raises(RunFailed, match=r"head\.weight is not finite after experience 1 \(step 3\)"):
        loop.run()


def test_logits_that_are_no_numbers_are_no_result(make_loop):
    class Spoil(Part):
        def before_eval(self, s):
            if s.trained == 2:
                s.learner.head.register_forward_hook(lambda module, given, out: out * float("nan"))

    loop = make_loop(epochs=1)
    loop.parts = [Spoil()]
    with pytest.raises(RunFailed, match=r"the logits are not finite on .* after experience 2"):
        loop.run()
    assert len(loop.state.correct) == 1, "no row of counts is made of them"
