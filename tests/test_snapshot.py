"""Snapshots: whatever the rest of a run depends on, taken between any two steps and put back."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from clsim import checkpoint, snapshot
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.events import Part
from clsim.strategies.linear import Linear

pytestmark = pytest.mark.usefixtures("without_pictures")


class Stop(Exception):
    """Ends a run at a step."""


class StopAt(Part):
    """Ends a run in the middle of an experience, after a snapshot."""

    def __init__(self, step, folder):
        self.at, self.folder = step, folder

    def save(self, loop):
        checkpoint.save(self.folder, snapshot.take(loop, [], offset=7))
        if loop.state.step >= self.at:
            raise Stop


def stopped(loop, at, folder):
    """The state that was saved at that step."""
    loop.save_seconds = 0.0
    loop.save = StopAt(at, folder).save
    with pytest.raises(Stop):
        loop.run()
    return checkpoint.load(folder)


def test_between_experiences_there_is_neither_an_optimizer_nor_a_random_state_to_keep(make_loop, tmp_path):
    saved = stopped(make_loop(), 6, tmp_path)
    assert (saved["trained"], saved["inside"], saved["epoch"], saved["epoch_steps"]) == (1, False, 0, 0)
    assert saved["optimizer"] is None and saved["random"] is None
    assert [experience["index"] for experience in saved["begun"]] == [0]
    assert saved["offset"] == 7


def test_inside_an_experience_both_are_kept(make_loop, tmp_path):
    saved = stopped(make_loop(), 8, tmp_path)
    assert (saved["trained"], saved["inside"], saved["epoch"], saved["epoch_steps"]) == (1, True, 0, 2)
    assert saved["optimizer"]["param_groups"][0]["factor"] == 1.0
    assert saved["random"]["cpu"].dtype == torch.uint8
    assert len(saved["begun"]) == 2 and len(saved["seen"]) == 4


def test_after_the_last_experience_a_restored_run_still_knows_it(make_loop, tmp_path):
    saved = stopped(make_loop(), 18, tmp_path)
    loop = make_loop()
    assert not loop.state.before, "the old name of has_baseline_row"
    snapshot.restore(loop, [], saved)
    assert saved["trained"] == 3 and loop.state.experience.index == 2


@pytest.mark.parametrize("at", [2, 3, 6, 7, 17])
def test_a_loop_that_is_restored_ends_as_one_that_was_never_stopped(make_loop, tmp_path, at):
    whole = make_loop("finetune")
    whole.run()
    saved = stopped(make_loop("finetune"), at, tmp_path)
    loop = make_loop("finetune")
    snapshot.restore(loop, [], saved)
    assert loop.state.step == at and loop.state.correct == whole.state.correct[: at // 6]
    torch.rand(5)  # whatever else the process draws
    loop.run()
    assert loop.state.correct == whole.state.correct and loop.cost.images == whole.cost.images == 72
    ours, theirs = loop.state.learner.state_dict(), whole.state.learner.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Dropping(nn.Module):
    """A head with drop-out, which draws from the global random state."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, batch):
        return self.head(nn.functional.dropout(batch.known_features, 0.5, self.training))


@dataclass(kw_only=True)
class Drops(Linear):
    """Linear probing with drop-out."""

    def build(self, backbone, info):
        return Dropping(super().build(backbone, info).head)


def dropping(loop):
    loop.strategy = Drops(epochs=2, batch_size=4)
    loop.state.learner = loop.tools.learner = Dropping(loop.state.learner.head)
    return loop


def test_drop_out_goes_on_where_it_was_in_the_middle_of_an_epoch(make_loop, tmp_path):
    whole = dropping(make_loop())
    whole.run()
    saved = stopped(dropping(make_loop()), 7, tmp_path)
    torch.manual_seed(99)
    loop = dropping(make_loop())
    snapshot.restore(loop, [], saved)
    loop.run()
    assert torch.equal(loop.state.learner.head.weight, whole.state.learner.head.weight)


def test_anytime_rows_and_confusion_come_back(make_loop, tmp_path):
    loop = make_loop("linear", scenario={"protocol": "pair"}, eval_every=8)
    saved = stopped(loop, 11, tmp_path)
    assert saved["has_baseline_row"] and [row["step"] for row in saved["anytime"]] == [2, 4, 6, 8, 10]
    again = make_loop("linear", scenario={"protocol": "pair"}, eval_every=8)
    snapshot.restore(again, [], saved)
    assert again.state.confusion.shape == (6, 6)
    assert (again.state.confusion == loop.state.confusion).all()
    assert again.state.anytime == loop.state.anytime and again.state.has_baseline_row


def test_what_strategies_are_told_comes_back_as_it_was():
    info = StreamInfo(("a", "b"), ("day",), "task", 2, tells_task=True)
    saved = {**vars(info), "class_names": ["a", "b"], "domain_names": ["day"]}
    assert snapshot.stream_info(saved) == info
    experience = ExperienceInfo(1, "classes 0-1", (0, 1), 12, "day", 1)
    assert snapshot.experiences([{**vars(experience), "classes": [0, 1]}]) == (experience,)
