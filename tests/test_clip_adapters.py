"""Methods that adapt CLIP's image features or its class texts: what each computes, by hand."""

import math

import pytest
import torch

from clsim.data.batches import Batch
from clsim.events import State, Step
from clsim.learner import begin
from clsim.parts.text import TextHead, start_training
from clsim.strategies.clip_adapter import AdaptedImages
from clsim.strategies.kgcoop import Guided, KgCoOp
from clsim.strategies.tip_adapter import KeyCache

TEXTS = torch.eye(3)[:2]  # two classes
METHODS = ("clip_adapter", "kgcoop", "tip_adapter", "tip_adapter_f")

pytestmark = pytest.mark.usefixtures("without_pictures")


def batch(*features):
    return Batch(None, torch.tensor(features))


def cache(alpha=2.0, beta=3.0):
    """Class 0 has one key, class 1 has two."""
    made = KeyCache(TEXTS.clone(), 2, alpha, beta)
    made.keys[0, 0], made.keys[1, 0], made.keys[1, 1] = (torch.eye(3)[place] for place in (2, 2, 1))
    made.counts.copy_(torch.tensor([1, 2]))
    return made


def test_tip_adapter_adds_the_neighbours_votes_to_the_texts():
    logits = cache()(batch([0.0, 3.0, 4.0])).logits  # as a unit vector (0, 0.6, 0.8)
    near, far = math.exp(-3 * (1 - 0.8)), math.exp(-3 * (1 - 0.6))
    torch.testing.assert_close(logits, torch.tensor([[2 * near, 60 + 2 * (near + far)]]))


def test_tip_adapter_without_weight_or_without_keys_is_zero_shot():
    image = batch([1.0, 2.0, 2.0])
    expected = torch.tensor([[100 / 3, 200 / 3]])
    torch.testing.assert_close(cache(alpha=0.0)(image).logits, expected)
    torch.testing.assert_close(KeyCache(TEXTS, 4, 5.0, 5.0)(image).logits, expected)


def test_a_large_beta_leaves_the_nearest_key():
    votes = cache(alpha=1.0, beta=200.0).from_keys(cache().affinities(torch.tensor([[0.0, 0.6, 0.8], [0.0, 0.8, 0.6]])))
    assert votes[1].argmax() == 1 and votes[0, 0] == votes[0, 1], "the first image's nearest keys are one of each class"


def test_factors_are_chosen_by_classifying_each_key_without_itself():
    seen = torch.tensor([True, True])
    wrong_texts = KeyCache(TEXTS, 2, 1.0, 1.0)  # the keys of a class are near one another, and near the other's text
    near = torch.nn.functional.normalize(torch.tensor([[0.01, 0.02, 1.0], [0.02, 0.01, -1.0]]), dim=1)
    wrong_texts.keys.copy_(near[:, None].expand(-1, 2, -1))
    wrong_texts.counts.fill_(2)
    wrong_texts.choose(seen, torch.Generator())
    alpha, beta = wrong_texts.factors.tolist()
    votes = alpha * (1 - math.exp(-2 * beta))
    assert votes > 1, "the neighbour outweighs the texts, whose logits differ by 1"
    right_texts = KeyCache(TEXTS, 2, 1.0, 1.0)
    right_texts.keys[0], right_texts.keys[1] = torch.eye(3)[0], torch.eye(3)[1]
    right_texts.counts.fill_(2)
    right_texts.choose(seen, torch.Generator())
    assert right_texts.factors.tolist() == pytest.approx([0.1, 0.1]), "all are equally good: the first is taken"


def test_keys_are_unit_means_of_views_and_no_class_has_more_than_its_shots(tmp_path, prepare):
    job = prepare("tip_adapter", tmp_path, shots=3, views=2)
    made = run_to_end(job)
    keys, counts = made.learner.keys, made.learner.counts
    assert set(counts[list(made.seen)].tolist()) == {3}
    torch.testing.assert_close(keys[made.seen[0]].norm(dim=1), torch.ones(3))
    rows = made.experience.rows[made.experience.labels == made.experience.classes[0]]
    views = made.view_features(rows)  # (2,n,E)
    found = torch.nn.functional.normalize(views.mean(dim=0), dim=1)
    own = keys[made.experience.classes[0]]
    assert all((found - key).norm(dim=1).min() < 1e-5 for key in own)


def run_to_end(job):
    """The state of a job after its last experience."""
    learner, tower = job.learner()
    state = State(learner, job.benchmark.info, 0)
    job.loop(state, tower, [*job.strategy.parts()]).run()
    return state


def test_tip_adapter_f_starts_from_the_keys_and_trains_only_them(tmp_path, finished, weights):
    fields = {"shots": 2, "views": 0, "search": False, "epochs": 1}
    still = weights(finished("tip_adapter_f", tmp_path / "still", **fields, lr=0.0, weight_decay=0.0))
    plain = weights(finished("tip_adapter", tmp_path / "plain", shots=2, views=0, search=False))
    assert still.keys() == plain.keys() and all(torch.equal(still[name], plain[name]) for name in plain)
    moved = weights(finished("tip_adapter_f", tmp_path / "moved", **fields))
    assert [name for name in plain if not torch.equal(moved[name], plain[name])] == ["keys"]


def test_clip_adapter_mixes_the_bottlenecks_output_into_the_feature():
    learner = AdaptedImages(TextHead(TEXTS, 10.0), 3, 1, 0.25)
    with torch.no_grad():
        learner.down.weight.copy_(torch.tensor([[1.0, 0.0, 1.0]]))
        learner.up.weight.copy_(torch.tensor([[1.0], [-1.0], [2.0]]))
    image = batch([1.0, 2.0, 2.0])
    torch.testing.assert_close(learner(image).logits, torch.tensor([[10 / 3, 20 / 3]]))
    start_training(learner)
    mixed = torch.tensor([0.25 * 3 + 0.75, 0.75 * 2, 0.25 * 6 + 0.75 * 2])  # the second output of the ReLU is 0
    torch.testing.assert_close(learner(image).features, mixed[None])
    torch.testing.assert_close(learner(image).logits, 10 * (mixed / mixed.norm())[None, :2])


def test_kgcoop_without_its_pull_is_coop(tmp_path, finished, weights):
    same = {"context_length": 4, "init": "a photo of a", "epochs": 1, "batch_size": 4}
    ours = finished("kgcoop", tmp_path, pull=0.0, **same)
    theirs = finished("coop", tmp_path, **same)
    assert ours.matrix["correct"] == theirs.matrix["correct"]
    assert ours.events["step"]["loss"].tolist() == theirs.events["step"]["loss"].tolist()
    assert torch.equal(weights(ours)["texts.context"], weights(theirs)["texts.context"])


def test_kgcoops_pull_is_the_distance_from_clips_features_over_the_classes_seen(tmp_path, prepare):
    job = prepare("kgcoop", tmp_path, pull=2.0)
    learner, tower = job.learner()
    assert isinstance(learner, Guided)
    losses = {}
    for pull in (0.0, 2.0):
        strategy = KgCoOp(pull=pull)
        state = State(learner, job.benchmark.info, 0)
        loop = job.loop(state, tower, [])
        experience = job.benchmark.train_stream[0]
        begin(strategy, learner, experience.info, 0, torch.device("cpu"))
        state.current, state.seen = experience, experience.classes
        step = Step(state, experience.rows[:4])
        step.batch = loop.tools.augmented(step.rows, 0, "augmentation", state)
        step.outputs = loop.tools.outputs(step.batch)
        losses[pull] = strategy.loss(step)
    classes = torch.nn.functional.normalize(learner.texts().float(), dim=1)
    distances = [1 - (classes[c] @ learner.known[c]).item() for c in experience.classes]
    expected = 2.0 * sum(distances) / len(distances)
    assert (losses[2.0] - losses[0.0]).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("kgcoop", {"template": "a photo"}, "position of the class name"),
        ("clip_adapter", {"share": 1.5}, "share must be between 0 and 1"),
        ("clip_adapter", {"templates": ()}, "one or more texts"),
        ("tip_adapter", {"beta": 0.0}, "beta must be above 0"),
        ("tip_adapter", {"shots": 0}, "shots must be at least 1"),
    ],
)
def test_values_without_sense(name, fields, words):
    from clsim import plugins

    with pytest.raises(ValueError, match=words):
        plugins.load("strategies", name)(**fields)
