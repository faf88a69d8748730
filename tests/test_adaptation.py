"""Unsupervised adaptation: formulas by hand, targets without labels, their draw, and runs on a pair of domains."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from clsim import checkpoint, config, plugins, runner
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.domains import adaptation
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.events import State, Step
from clsim.parts.adaptation import Reversed, adversarial_loss, ramp
from clsim.scenarios.glyph_pair import GlyphPair
from clsim.strategies.cdan import multilinear
from clsim.strategies.dapl import SOURCE, TARGET, Dapl, DaplOutputs
from clsim.strategies.mcc import class_confusion

PAIR = ("dann", "cdan", "mcc", "source_only", "dapl", "coop", "zero_shot")
SMALL = {"scenario.train_per_class": "3", "scenario.test_per_class": "2", "epochs": "2", "batch_size": "16"}


# formulas


def test_ramp_rises_from_none_to_all():
    assert ramp(0) == 0
    assert ramp(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert ramp(1) == pytest.approx(0.9999092)


def test_gradient_reversal_scales_by_strength():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    out = Reversed.apply(x, 0.5)
    assert torch.equal(out, x)
    (out * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [-1.5, -2.0]


def test_adversarial_loss_teaches_the_domain_classifier_and_unteaches_the_features():
    classifier = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    with torch.no_grad():
        classifier[0].weight.fill_(1.0)
    source, target = torch.tensor([[0.0]], requires_grad=True), torch.tensor([[0.0]], requires_grad=True)
    loss = adversarial_loss(classifier, source, target, strength=1.0)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    # d loss / d logit: (p - 1) / 2 for the source, p / 2 for the target, with p = 1/2; turned round for the features
    assert source.grad.item() == pytest.approx(0.25) and target.grad.item() == pytest.approx(-0.25)


def test_both_domains_weigh_the_same_in_the_adversarial_loss_where_one_has_fewer_images():
    """Half the sum of two means (Ganin et al. 2016, eq. 9), and not the mean over all images."""

    def logits(features):
        return features[:, 0]

    source, target = torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [-1.0]])
    of_source = math.log(1 + math.exp(-1))
    of_target = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 3
    found = adversarial_loss(logits, source, target, 1.0).item()
    assert found == pytest.approx((of_source + of_target) / 2, abs=1e-6)
    # of two whole batches it is the plain mean, to the last bit
    source, target = torch.randn(8, 1), torch.randn(8, 1)
    domain = torch.cat([torch.ones(8), torch.zeros(8)])
    plain = nn.functional.binary_cross_entropy_with_logits(torch.cat([source, target])[:, 0], domain)
    assert torch.equal(adversarial_loss(logits, source, target, 1.0), plain)


def test_multilinear_map_is_the_outer_product_and_detaches_probabilities():
    features = torch.tensor([[1.0, 2.0]], requires_grad=True)
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    product = multilinear(features, logits)
    assert torch.allclose(product, torch.tensor([[0.25, 0.5, 0.75, 1.5]]))
    product.sum().backward()
    assert logits.grad is None and torch.allclose(features.grad, torch.ones(1, 2))


def test_class_confusion_by_hand():
    # both images equally sure, so every weight is 1; with T = 1, P = [[3/4, 1/4], [1/4, 3/4]]
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    # P'P = [[10, 6], [6, 10]] / 16, rows normalised to 10/16 and 6/16: off the diagonal 6/16 in the mean over classes
    assert class_confusion(logits, 1.0).item() == pytest.approx(6 / 16)
    # certain predictions confuse nothing
    assert class_confusion(1000 * torch.eye(2), 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_class_confusion_weighs_sure_images_more():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    entropy = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)]
    raw = np.array([1 + math.exp(-each) for each in entropy])
    weights = raw / raw.mean()
    p = np.array([[0.75, 0.25], [0.5, 0.5]])
    confusion = (p * weights[:, None]).T @ p
    confusion = confusion / confusion.sum(axis=1, keepdims=True)
    assert class_confusion(logits, 1.0).item() == pytest.approx((confusion.sum() - np.trace(confusion)) / 2, abs=1e-6)


# DAPL


INFO = StreamInfo(("star", "ring"), ("real", "sketch"), "pair", 1, has_target=True)
WHOLE = ExperienceInfo(0, "pair", (0, 1), 3)


def dapl_step(on_source, on_target, pseudo, **fields):
    """A step whose learner returned these logits."""
    strategy = Dapl(**fields)
    source = torch.tensor(on_source)
    target, sure = (None if each is None else torch.tensor(each) for each in (on_target, pseudo))
    batch = Batch(None, torch.zeros(len(source), 2), labels=torch.zeros(len(source), dtype=torch.int64))
    run = State(nn.Module(), INFO, 0)
    logged = {}
    run.log = lambda name, value: logged.update({name: float(value)})
    step = Step(run, np.arange(len(source)), batch)
    step.outputs = DaplOutputs(source[:, :2], on_source=source, on_target=target, pseudo=sure)
    return strategy, step, logged


def test_dapl_spans_the_prompts_of_both_domains_or_of_one():
    a, b, c = math.log(1.0), math.log(2.0), math.log(5.0)
    # class 0 as a source: 1 among (1, 2, 5, 2), or among (1, 2)
    for contrast, share in (("both", 1 / 10), ("none", 1 / 3)):
        strategy, step, _ = dapl_step([[a, b, c, b]], None, None, domain_contrast=contrast)
        assert strategy.loss(step).item() == pytest.approx(-math.log(share), rel=1e-6)


def test_dapl_smooths_labels_over_the_prompts_in_its_softmax():
    logits = [math.log(1.0), math.log(2.0), math.log(5.0), math.log(2.0)]
    strategy, step, _ = dapl_step([logits], None, None, label_smoothing=0.2)
    right, every = -math.log(0.1), -math.log(0.1 * 0.2 * 0.5 * 0.2) / 4
    assert strategy.loss(step).item() == pytest.approx(0.8 * right + 0.2 * every, rel=1e-6)


def test_dapl_learns_sure_pseudo_labels_in_the_targets_block():
    sure, unsure = [0.0, math.log(3.0)], [0.0, 0.0]
    on_target = [[0.0, 0.0, 0.0, math.log(2.0)], [9.0, 0.0, 0.0, 0.0]]
    strategy, step, logged = dapl_step([[0.0] * 4], on_target, [sure, unsure], threshold=0.6)
    # the first image's class is 1, which is prompt 3 of four: 2 among (1, 1, 1, 2); the second is not sure enough
    assert strategy.loss(step).item() == pytest.approx(math.log(4) - math.log(2 / 5), rel=1e-6)
    assert logged == {"pseudo_labels_kept": 0.5}


def test_dapl_without_a_sure_pseudo_label_loses_nothing_on_the_target():
    strategy, step, logged = dapl_step([[0.0] * 4], [[5.0, 0.0, 0.0, 0.0]] * 2, [[0.0, 0.1]] * 2, threshold=0.9)
    assert strategy.loss(step).item() == pytest.approx(math.log(4))
    assert logged == {"pseudo_labels_kept": 0.0}


def test_dapl_is_zero_shot_before_training_and_predicts_with_the_targets_block_after():
    backbone = load_backbone("clip_nano")
    strategy = Dapl(context_length=2, domain_length=2)
    learner = strategy.build(backbone, INFO)
    images = torch.randn(3, backbone.image.out_dim)
    zero_shot = plugins.load("strategies", "zero_shot")().build(backbone, INFO)(Batch(None, images)).logits
    learner.eval()
    assert torch.equal(learner(Batch(None, images)).logits, zero_shot)
    strategy.begin(learner, WHOLE)
    learner.train()
    both = learner(Batch(None, images, target=Batch(None, images)))
    assert torch.equal(both.logits, both.on_source[:, :2]) and both.on_source.shape == both.on_target.shape == (3, 4)
    assert torch.equal(both.pseudo, zero_shot)
    learner.eval()
    with torch.no_grad():
        assert torch.allclose(learner(Batch(None, images)).logits, both.on_target[:, 2:], atol=1e-5)
        assert not torch.allclose(learner.classes(SOURCE), learner.classes(TARGET))


def test_dapl_learns_a_stream_without_a_target_as_a_source():
    backbone = load_backbone("clip_nano")
    strategy = Dapl(context_length=2, domain_length=2)
    learner = strategy.build(backbone, StreamInfo(("star", "ring"), (), "class", 2))
    strategy.begin(learner, WHOLE)
    outputs = learner(Batch(None, torch.randn(3, backbone.image.out_dim)))
    assert outputs.on_target is None and torch.equal(outputs.logits, outputs.on_source[:, :2])
    assert learner.block == SOURCE


# the stream


@pytest.fixture
def tables():
    """Four images of each of two classes in each of three domains; a pixel tells where an image comes from."""
    labels = np.tile(np.repeat(np.arange(2), 4), 3)
    domains = np.repeat(np.arange(3), 8)
    images = np.broadcast_to((10 * domains + labels)[:, None, None, None], (24, 3, 8, 8)).astype(np.uint8)
    names = ("a", "b"), ("Real World", "art", "clip")
    return [ImageTable.from_arrays(images, labels, names[0], domains, names[1]) for _ in range(2)]


def test_columns_of_a_pair(tables):
    benchmark = adaptation(GlyphPair(source="real_world", target="CLIP"), *tables)
    (learned,) = benchmark.train_stream
    assert [e.name for e in benchmark.test_stream] == ["target", "target test", "source test"]
    assert benchmark.info.domain_names == ("Real World", "clip")
    where = tables[0].domains
    assert set(where[learned.rows]) == {0} and set(where[learned.unlabelled]) == {2}
    assert np.array_equal(learned.unlabelled, benchmark.test_stream[0].rows), "transductive, the papers' figure"
    assert [set(e.table.domains[e.rows]) for e in benchmark.test_stream] == [{2}, {2}, {0}]


def test_no_target_label_is_within_reach_of_training(tables):
    benchmark = adaptation(GlyphPair(source="art", target="clip"), *tables)
    (learned,) = benchmark.train_stream
    table = learned.table
    assert set(table.labels[learned.rows]) == {0, 1}
    assert (np.delete(table.labels, learned.rows) == -1).all(), "the target's, and those of a domain that takes no part"


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("art", "Art", "'art' is both source and target"),
        ("real", "clip", "Real World"),
        ("art", "cilp", "did you mean 'clip'"),
    ],
)
def test_pairs_that_make_no_sense(tables, source, target, message):
    with pytest.raises(RequestError, match=message):
        adaptation(GlyphPair(source=source, target=target), *tables)


# runs


def plan(strategy, out, **fields):
    backbone = "clip_nano" if plugins.load("strategies", strategy)().needs_text else "vit_nano"
    options = {"scenario": "glyph_pair", "strategy": strategy, "backbone": backbone, "out": out, "precision": "fp32"}
    (only,) = config.plan(options, SMALL | fields, None)
    return only


def finished(strategy, out, **fields):
    (run,) = runner.run_all([plan(strategy, out, **fields)], quiet=True)
    return run


@pytest.mark.parametrize("strategy", PAIR)
def test_a_pair_is_measured_on_target_and_source(strategy, tmp_path):
    run = finished(strategy, tmp_path)
    assert run.directory.parts[-3] == "glyph_pair.real-sketch"
    correct, total = run.matrix["correct"], run.matrix["total"]
    assert total == [60, 40, 40] and len(correct) == 1 + run.matrix["before"]
    metrics = run.metrics
    assert metrics["target_accuracy"] == correct[-1][0] / 60 and metrics["source_accuracy"] == correct[-1][2] / 40
    assert metrics["target_class_mean"] == pytest.approx(metrics["target_accuracy"]), "classes are of one size"
    confusion = np.array(run.matrix["confusion"]["target"])
    assert confusion.sum() == 60 and np.trace(confusion) == correct[-1][0]
    if strategy in ("dapl", "coop", "zero_shot"):
        assert metrics["adaptation_gain"] == pytest.approx((correct[-1][0] - correct[0][0]) / 60)
    else:
        assert metrics["adaptation_gain"] is None and "source_only" in run.summary["notes"]["adaptation_gain"]
    assert metrics["forgetting"] is None and run.summary["notes"]["forgetting"]


@pytest.mark.parametrize("strategy", ["source_only", "dann", "cdan", "mcc"])
def test_the_tower_can_learn_as_well(strategy, tmp_path):
    job = runner.Job.prepare(plan(strategy, tmp_path, tune="all", epochs="1"))
    before = {name: p.clone() for name, p in job.backbone.image.named_parameters()}
    run = job.execute(fresh=False, quiet=True)
    moved = [name for name, p in job.backbone.image.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > len(before) / 2 and run.metrics["target_accuracy"] is not None


def test_before_training_every_method_on_clip_is_zero_shot(tmp_path):
    rows = {name: finished(name, tmp_path).matrix["correct"][0] for name in ("zero_shot", "dapl", "coop", "cocoop")}
    assert len(set(map(tuple, rows.values()))) == 1


@pytest.mark.parametrize("strategy", ["dann", "dapl"])
def test_a_pair_interrupted_between_epochs_ends_bit_identical(strategy, tmp_path, broken_off):
    whole = finished(strategy, tmp_path / "whole")
    broken_off(2, lambda: finished(strategy, tmp_path / "broken"))
    assert not list((tmp_path / "broken").rglob("summary.json"))
    again = finished(strategy, tmp_path / "broken")
    assert again.matrix == whole.matrix and again.metrics == whole.metrics
    ours, theirs = (checkpoint.load(run.directory / "checkpoint")["learner"] for run in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("strategy", ["coop", "dapl"])
def test_views_are_learned_from_and_never_tested_on(strategy, tmp_path):
    plain, viewed, again = (
        finished(strategy, tmp_path / str(i), views=views) for i, views in enumerate(("0", "2", "2"))
    )
    context = [checkpoint.load(run.directory / "checkpoint")["learner"] for run in (plain, viewed, again)]
    name = next(name for name in context[0] if name.endswith("context"))
    assert not torch.equal(context[0][name], context[1][name]) and torch.equal(context[1][name], context[2][name])
    assert plain.matrix["correct"][0] == viewed.matrix["correct"][0], "zero-shot, on clean images"
    with pytest.raises(RequestError, match="views must be at least 0"):
        plan(strategy, tmp_path, views="-1")


def test_dapl_on_a_sequence_of_targets(tmp_path):
    fields = {"scenario.protocol": "targets", "scenario.targets": "sketch,quickdraw", "epochs": "1"}
    run = finished("dapl", tmp_path, **fields)
    assert [len(row) for row in run.matrix["correct"]] == [2, 2, 2] and run.matrix["before"]
    assert run.metrics["forgetting"] is not None and run.metrics["forward_transfer"] is not None


NOSY = '''
from dataclasses import dataclass
from clsim import Strategy
from clsim.parts.heads import LinearHead
from clsim.parts.learners import BankFeatures, Headed

SEEN = {}

@dataclass(kw_only=True)
class Nosy(Strategy):
    """Looks for labels of the target."""

    def reads(self):
        return {"features"}

    def build(self, backbone, info):
        return Headed(BankFeatures(), LinearHead(backbone.image.out_dim, info.num_classes))

    def after_forward(self, s):
        target, experience = s.batch.target, s.experience
        SEEN["labels"] = (target.labels, target.rows, target.domains)
        SEEN["table"] = set(experience.table.labels[experience.unlabelled].tolist())
        SEEN["size"] = len(target)
        SEEN.setdefault("features", []).append(target.features.clone())
'''


def test_a_strategy_that_looks_for_target_labels_finds_none(tmp_path):
    (tmp_path / "nosy.py").write_text(NOSY)
    spec = f"{tmp_path / 'nosy.py'}:Nosy"
    options = {"scenario": "glyph_pair", "strategy": spec, "backbone": "vit_nano", "out": tmp_path, "precision": "fp32"}
    (only,) = config.plan(options, SMALL, None)
    job = runner.Job.prepare(only)
    seen = type(job.strategy).after_forward.__globals__["SEEN"]
    job.execute(fresh=False, quiet=True)
    assert seen["labels"] == (None, None, None)
    assert seen["table"] == {-1} and seen["size"] == 16
    drawn = torch.cat(seen["features"])[:60]
    assert len(torch.unique(drawn, dim=0)) == 60, "one pass over the target's 60 images before any comes again"
