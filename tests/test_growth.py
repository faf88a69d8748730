"""Learners that grow, and training that changes from one experience to the next: the examples of the documentation."""

from pathlib import Path

import pytest
import torch

from clsim import checkpoint
from clsim.errors import RequestError, RunFailed
from clsim.events import Step
from clsim.learner import begin
from clsim.parts.ewc import Ewc
from clsim.results import load

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")
EXAMPLES = {
    "heads": "growing_heads.py:GrowingHeads",
    "adapters": "growing_adapters.py:GrowingAdapters",
    "first": "first_session.py:FirstSession",
}


def plugin(name):
    return str(Path(__file__).parents[1] / "docs" / "examples" / EXAMPLES[name])


@pytest.fixture(scope="module", params=EXAMPLES)
def whole(request, finished, without_pictures, tmp_path_factory):
    return request.param, finished(plugin(request.param), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_enough_to_be_read(name):
    assert len(Path(plugin(name).rpartition(":")[0]).read_text().splitlines()) < 40


def test_it_learns_what_it_adds(whole):
    name, run = whole
    assert len(run.matrix["correct"]) == 3 and run.metrics["average_accuracy"] is not None
    kept = checkpoint.load(run.directory / "checkpoint")["learner"]
    if name == "heads":
        assert [kept[f"heads.{i}.weight"].shape for i in range(3)] == [(2, 32)] * 3
        assert sorted(kept["columns"].tolist()) == list(range(6))
    if name == "adapters":
        assert sum(key.endswith(".0.weight") for key in kept) == 3
    if name == "first":
        assert run.events["step"]["experience"].max() == 1, "no steps after the first experience"
        assert kept["means.counts"].tolist() == [6] * 6


def test_what_was_frozen_by_a_later_experience_stays_as_it_was(tmp_path, prepare, finished, make_loop):
    loop = make_loop(plugin("heads"))
    after = []
    loop.save = lambda loop: after.append({k: v.clone() for k, v in loop.state.learner.state_dict().items()})
    loop.run()
    assert [sum(key.endswith("weight") for key in state) for state in after] == [1, 2, 3]
    assert torch.equal(after[0]["heads.0.weight"], after[2]["heads.0.weight"])


@pytest.mark.parametrize("saves", [1, 2])
def test_it_resumes_between_experiences_bit_identical(whole, saves, tmp_path, broken_off, finished, same_run):
    name, run = whole
    saved = broken_off(saves, lambda: finished(plugin(name), tmp_path))
    assert saved["trained"] == saves == len(saved["begun"])
    same_run(finished(plugin(name), tmp_path), run)


@pytest.mark.parametrize("saves", [1, 7])
def test_it_resumes_inside_an_experience_bit_identical(whole, saves, tmp_path, broken_off, finished, same_run):
    name, run = whole

    def work():
        return finished(plugin(name), tmp_path, checkpoint_minutes=0)

    saved = broken_off(saves, work)
    assert saved["inside"] == (name != "first" or saves == 1)
    assert len(saved["begun"]) == saved["trained"] + saved["inside"]
    same_run(work(), run)


def test_it_is_loaded_and_predicts_as_it_was_evaluated(whole, prepare, tmp_path):
    name, run = whole
    tests = prepare(plugin(name), tmp_path).benchmark.test_stream
    again = load(run.directory)
    found = [int((again.predict(each.table.pixels(each.rows)) == each.labels).sum()) for each in tests]
    assert found == run.matrix["correct"][-1]


def test_what_begin_adds_is_drawn_from_the_experiences_own_stream(make_loop):
    first, again, other = (make_loop(plugin("adapters"), seed=seed) for seed in (0, 0, 1))
    for loop, before in ((first, 0), (again, 5), (other, 0)):
        torch.rand(before)  # what others drew meanwhile does not matter
        for experience in loop.benchmark.train_stream[:2]:
            begin(loop.strategy, loop.state.learner, experience.info, loop.state.seed, CPU)
    ours, same, others = (loop.state.learner.adapters for loop in (first, again, other))
    assert torch.equal(ours[1][0].weight, same[1][0].weight)
    assert not torch.equal(ours[1][0].weight, others[1][0].weight)
    assert not torch.equal(ours[0][0].weight, ours[1][0].weight)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    begin(first.strategy, first.state.learner, first.benchmark.train_stream[2].info, 0, CPU)
    assert torch.equal(torch.rand(3), expected), "the global random state is left alone"


FORGETFUL = '''
from dataclasses import dataclass
from torch import nn
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Forgetful(Linear):
    """Lets something learn where resuming does not come by."""

    def build(self, backbone, info):
        learner = super().build(backbone, info)
        learner.extra = nn.Linear(2, 2).requires_grad_(False)
        return learner

    def before_training_exp(self, s):
        s.learner.extra.requires_grad_(True)
'''


def test_what_learns_is_chosen_in_begin_and_resuming_says_so_where_it_was_not(tmp_path, broken_off, finished):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    name = f"{tmp_path}/forgetful.py:Forgetful"
    broken_off(1, lambda: finished(name, tmp_path, checkpoint_minutes=0))
    with pytest.raises(RequestError, match=r"chosen in `begin`.*--fresh"):
        finished(name, tmp_path, checkpoint_minutes=0)


WIDER = '''
from dataclasses import dataclass

import torch
from torch import nn

from clsim.strategy import Mask, Strategy

class Net(nn.Module):
    def __init__(self, tower, classes):
        super().__init__()
        self.tower, self.classes, self.head = tower, classes, nn.Linear(tower.out_dim, 1)

    def forward(self, batch):
        logits = self.head(self.tower(batch.images))
        return nn.functional.pad(logits, (0, self.classes - logits.shape[1]))

@dataclass(kw_only=True)
class Wider(Strategy):
    """Replaces its head by a larger one with the same name."""

    mask: Mask = "all"
    step: int = 2  # outputs more in each experience

    def build(self, backbone, info):
        return Net(backbone.image, info.num_classes)

    def begin(self, learner, experience):
        old, size = learner.head, (2 + self.step * experience.index)
        learner.head = nn.Linear(old.in_features, size)
        with torch.no_grad():
            learner.head.weight[: len(old.weight)] = old.weight[:size]
            learner.head.bias[: len(old.bias)] = old.bias[:size]
'''


def test_parts_take_a_head_that_is_replaced_by_a_larger_one(tmp_path, broken_off, finished, same_run):
    (tmp_path / "wider.py").write_text(WIDER)

    def work(out):
        options = {"with": "ewc:10,lwf:1,der:0.5:0.5:6,er:6", "checkpoint_minutes": 0}
        return finished(f"{tmp_path}/wider.py:Wider", tmp_path / out, {"order_seed": -1}, **options)

    whole = work("whole")
    ewc = checkpoint.load(whole.directory / "checkpoint")["parts"][0]
    assert ewc["fisher"]["head.weight"].shape == ewc["anchor"]["head.weight"].shape == (6, 32)
    assert broken_off(9, lambda: work("parted"))["inside"], "the old head's Fisher information meets the larger head"
    same_run(work("parted"), whole)


def test_ewc_holds_the_old_entries_of_a_weight_that_has_grown_and_no_new_ones(make_loop):
    loop = make_loop()
    head = loop.state.learner.head
    ewc = Ewc(strength=2.0)
    ewc.fisher, ewc.anchor = {"head.bias": torch.tensor([3.0, 1.0])}, {"head.bias": head.bias.detach()[:2] - 2.0}
    step = Step(loop.state, loop.benchmark.train_stream[0].rows[:1])
    step.loss = torch.tensor(1.0)
    ewc.before_backward(step)
    assert step.loss.item() == pytest.approx(1 + 2 / 2 * (3 * 2**2 + 1 * 2**2))


def test_ewc_says_which_weight_has_shrunk(tmp_path, finished):
    (tmp_path / "wider.py").write_text(WIDER)
    with pytest.raises(RunFailed, match=r"ewc: head.weight was \(2, 32\) after an earlier experience and is \(1, 32\)"):
        finished(f"{tmp_path}/wider.py:Wider", tmp_path, **{"with": "ewc:10", "step": -1})
