"""Learners that grow, and training that changes from one experience to the next: the examples of the documentation."""

from pathlib import Path

import pytest
import torch

from clsim import checkpoint
from clsim.errors import RequestError
from clsim.learner import begin
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
