"""What every strategy must do, parametrised over all that are registered; and what each one promises."""

import copy
import dataclasses
from types import FunctionType, MethodType, ModuleType

import numpy as np
import pytest
import torch

from clsim import config, plugins
from clsim.data.batches import Batch
from clsim.data.transforms import Augmentation, evaluation
from clsim.errors import RequestError
from clsim.events import State, Step
from clsim.learner import begin, load_learner
from clsim.outputs import as_outputs
from clsim.runner import Job
from clsim.strategies.l2p import L2P

pytestmark = pytest.mark.usefixtures("without_pictures")

STRATEGIES = plugins.names("strategies")
# the tests of a strategy stay in one process, which makes its unbroken run once
EACH = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in STRATEGIES]
PARTS = ["ewc:10", "lwf:0.5", "der:0.1:0.5:6", "er:4"]


def takes_steps(name):
    """Whether it is trained by gradients in the first experience."""
    return plugins.load("strategies", name)().has_gradients


@pytest.fixture(scope="module", params=EACH)
def whole(request, finished, without_pictures, tmp_path_factory):
    """An unbroken run of every strategy."""
    return finished(request.param, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def name(whole):
    return whole.summary["strategy"]


def test_finishes_with_every_file_of_the_contract(whole):
    files = {path.name for path in whole.directory.iterdir()}
    assert {"summary.json", "matrix.json", "config.toml", "env.json", "events.jsonl", "checkpoint"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert whole.summary["strategy"] == whole.directory.parent.name
    assert 0 <= whole.metrics["average_accuracy"] <= 1
    reasons = whole.summary["notes"]
    assert all(value is not None or reasons[name] for name, value in whole.metrics.items())


def test_nothing_is_kept_twice_under_two_names(whole, weights):
    kept = weights(whole)
    varied = [name for name, tensor in kept.items() if tensor.numel() > 1 and len(tensor.unique()) > 1]
    twins = [(a, b) for i, a in enumerate(varied) for b in varied[:i] if torch.equal(kept[a], kept[b])]
    assert not twins


def test_the_same_run_again_is_bit_identical_however_often_it_is_saved(whole, name, tmp_path, finished, same_run):
    same_run(finished(name, tmp_path, checkpoint_minutes=0), whole)


@pytest.mark.parametrize("last_save", [1, 2])
def test_an_interrupted_run_ends_bit_identical(whole, name, last_save, tmp_path, broken_off, finished, same_run):
    saved = broken_off(last_save, lambda: finished(name, tmp_path))
    assert saved["step"] > 0 or not takes_steps(name) or last_save == 1
    assert not list(tmp_path.rglob("summary.json")) or saved["trained"] == 3
    resumed = finished(name, tmp_path)
    same_run(resumed, whole)
    steps = resumed.events.get("step", {}).get("step", np.array([]))
    assert steps.tolist() == list(range(1, len(steps) + 1)), "no step is recorded twice or left out"


def test_broken_off_twice_inside_an_experience_a_run_ends_bit_identical(
    whole, name, tmp_path, broken_off, finished, same_run
):
    """A checkpoint after every step; stopped in the middle of an epoch, resumed, stopped and resumed again."""
    resumed = broken_inside(name, tmp_path, broken_off, finished)
    same_run(resumed, whole)
    if takes_steps(name):
        for value in ("step", "loss"):
            assert resumed.events["step"][value].tolist() == whole.events["step"][value].tolist()


@pytest.mark.parametrize("name", [each for each in EACH if takes_steps(each.values[0])])
def test_memories_and_regularisers_go_on_inside_an_experience(name, tmp_path, broken_off, finished, same_run):
    """Every strategy that trains takes all of them at once."""
    unbroken = finished(name, tmp_path / "unbroken", **{"with": PARTS})
    resumed = broken_inside(name, tmp_path / "broken", broken_off, finished, **{"with": PARTS})
    same_run(resumed, unbroken)
    assert resumed.summary["cost"]["memory_bytes"] == unbroken.summary["cost"]["memory_bytes"] > 0


def broken_inside(name, out, broken_off, finished, **more):
    def work():
        return finished(name, out, checkpoint_minutes=0, **more)

    first = broken_off(5, work)
    assert first["inside"] == (first["epoch_steps"] > 0) == takes_steps(name)
    if takes_steps(name):
        second = broken_off(5, work)
        assert second["step"] > first["step"] and (second["inside"] or second["trained"] == 3)
    return work()


def test_steps_train_all_that_asks_for_gradients_and_nothing_else(whole, name, tmp_path, prepare, weights):
    job = prepare(name, tmp_path)
    learner, _ = job.learner()
    trained = set()
    for experience in job.strategy.experiences(job.benchmark.train_stream):
        begin(job.strategy, learner, experience.info, seed=0, device=torch.device("cpu"))
        trained |= {key for key, p in learner.named_parameters() if p.requires_grad}
    before = {key: tensor.clone() for key, tensor in learner.state_dict().items()}
    load_learner(learner, weights(whole))
    moved = {key for key, tensor in learner.state_dict().items() if not torch.equal(tensor, before[key])}
    buffers = {key for key, _ in learner.named_buffers()}
    assert moved - buffers == trained
    assert trained or not job.strategy.has_gradients


def test_a_prediction_depends_on_its_image_alone(whole):
    images = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)
    scores = whole.scores(images)
    order = np.random.default_rng(1).permutation(70)
    np.testing.assert_allclose(whole.scores(images[order]), scores[order], rtol=0, atol=1e-4)
    singles = np.concatenate([whole.scores(images[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(singles, scores[:9], rtol=0, atol=1e-4)


def test_the_loaded_learner_predicts_as_the_last_evaluation_did(
    whole, name, tmp_path, prepare, assert_predicts_as_evaluated
):
    assert_predicts_as_evaluated(whole, prepare(name, tmp_path))


# in other protocols


@pytest.mark.parametrize("name", EACH)
def test_the_task_protocol_runs_resumes_and_predicts(
    name, tmp_path, broken_off, finished, prepare, same_run, assert_predicts_as_evaluated
):
    scenario = {"protocol": "task"}
    run = finished(name, tmp_path / "unbroken", scenario, epochs=1)
    broken_off(2, lambda: finished(name, tmp_path / "broken", scenario, epochs=1))
    same_run(finished(name, tmp_path / "broken", scenario, epochs=1), run)
    assert_predicts_as_evaluated(run, prepare(name, tmp_path, scenario))


@pytest.mark.parametrize("name", EACH)
def test_a_domain_stream_is_scored_before_training(name, tmp_path, finished, prepare, assert_predicts_as_evaluated):
    scenario = {"protocol": "domain", "train_per_class": 2}
    run = finished(name, tmp_path, scenario, epochs=1)
    rows = run.matrix["correct"]
    if name == "joint":
        assert [row[0] is None for row in rows] == [True, True, False]
    else:
        assert len(rows) == 4 and all(cell is not None for row in rows for cell in row)
        assert run.metrics["forward_transfer"] is not None
    assert_predicts_as_evaluated(run, prepare(name, tmp_path, scenario))


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_a_pair_of_domains_is_learned_and_drawn(name, tmp_path, finished, prepare, assert_predicts_as_evaluated):
    run = finished(name, tmp_path, {"protocol": "pair"}, epochs=1)
    assert 0 <= run.metrics["target_accuracy"] <= 1
    assert (run.directory / "pictures" / "features.png").exists()
    assert_predicts_as_evaluated(run, prepare(name, tmp_path, {"protocol": "pair"}))


@pytest.mark.parametrize("name", EACH)
def test_target_after_target_is_adapted_to(name, tmp_path, finished, prepare, assert_predicts_as_evaluated):
    scenario = {"protocol": "targets", "train_per_class": 2}
    run = finished(name, tmp_path, scenario, epochs=1)
    assert run.matrix["experiences"] == ["fog", "night"]
    assert_predicts_as_evaluated(run, prepare(name, tmp_path, scenario))


@pytest.fixture
def assert_predicts_as_evaluated(evaluated):
    """Every test image gets from `Run.predict` the class that the last evaluation gave it."""

    def check(run, job):
        tests, tells_task = job.benchmark.test_stream, job.benchmark.info.tells_task
        for test, count in zip(tests, run.matrix["correct"][-1], strict=True):
            predicted = run.predict(test.table.pixels(test.rows), test.index if tells_task else None)
            last = evaluated[run.directory]
            assert predicted.tolist() == [last[test.table.fingerprint, row] for row in test.rows.tolist()]
            assert int((predicted == test.labels).sum()) == count

    return check


# a learner has no memory of the batches that it was given


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_pass_leaves_no_trace_in_the_learner(whole, name, training, tmp_path, prepare):
    job = prepare(name, tmp_path)
    learner = whole._predictor.learner
    _, tower = job.learner()
    experience = job.benchmark.train_stream[0]
    loader = job.loader(experience.table, tower)
    first, batch = (
        loader.train(experience.rows[rows], Augmentation(1.0, False), torch.Generator().manual_seed(0))
        for rows in (slice(0, 3), slice(3, 8))
    )
    learner.train(training)
    with torch.no_grad():
        seeded(learner, first)  # what is computed from the weights alone may be kept
    before = copy.deepcopy(learner)
    with torch.no_grad():
        once, again = (seeded(learner, batch) for _ in range(2))
    learner.eval()
    before.eval()
    assert differences(vars(once), vars(again)) == []
    assert [key for key in changed(learner, before) if not (training and key in of_batch_norms(learner))] == []
    ours, theirs = plain_attributes(learner), plain_attributes(before)
    assert differences(ours, theirs) == []


def changed(learner, before):
    """Names of tensors that differ."""
    ours, theirs = learner.state_dict(), before.state_dict()
    assert ours.keys() == theirs.keys()
    return [key for key in ours if not torch.equal(ours[key], theirs[key])]


def of_batch_norms(learner):
    """Names of the running means, which training moves."""
    norms = {name: m for name, m in learner.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    return {f"{name}.{key}" for name, module in norms.items() for key in module._buffers}


def plain_attributes(learner):
    """What modules keep outside of their parameters, buffers and modules; those of torch's own modules are its own."""
    ignored = ("_parameters", "_buffers", "_modules", "training")
    return {
        f"{name}.{key}": value
        for name, module in learner.named_modules()
        if not type(module).__module__.startswith("torch.")
        for key, value in vars(module).items()
        if key not in ignored
    }


def seeded(learner, batch):
    torch.manual_seed(0)  # drop-out
    return as_outputs(learner(batch))


def differences(a, b, path="", met=None):
    """The places in which two trees of Python objects differ; modules inside them are compared on their own."""
    met = set() if met is None else met
    if (id(a), id(b)) in met or isinstance(a, type | ModuleType | FunctionType | MethodType):
        return []
    met.add((id(a), id(b)))
    if type(a) is not type(b):
        return [path]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, np.ndarray):
        return [] if np.array_equal(a, b) else [path]
    if isinstance(a, dict):
        if list(map(str, a)) != list(map(str, b)):
            return [f"{path}: other keys"]
        pairs = zip(a, a.values(), b.values(), strict=True)
        return [each for key, x, y in pairs for each in differences(x, y, f"{path}.{key}", met)]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: another length"]
        pairs = enumerate(zip(a, b, strict=True))
        return [each for i, (x, y) in pairs for each in differences(x, y, f"{path}[{i}]", met)]
    if hasattr(a, "__dict__"):
        return differences(vars(a), vars(b), path, met)
    return [] if a == b or isinstance(a, set) else [path]


# single methods


def test_ncm_equals_class_means_by_hand(tmp_path, finished, prepare):
    run = finished("ncm", tmp_path)
    head = run._predictor.learner.head
    job = prepare("ncm", tmp_path / "other")
    experience = job.benchmark.train_stream[2]
    images = experience.table.pixels(experience.rows[experience.labels == experience.classes[0]])
    with torch.no_grad():
        features = job.backbone.image(evaluation(torch.from_numpy(images), job.backbone.image.pixels))
    mean = head.sums[experience.classes[0]] / head.counts[experience.classes[0]]
    assert head.counts[experience.classes[0]] == 6
    assert torch.allclose(mean.float(), features.mean(0), atol=1e-5)


def test_joint_learns_once_and_reports_the_final_row_only(tmp_path, finished):
    run = finished("joint", tmp_path)
    assert [row == [None] * 3 for row in run.matrix["correct"]] == [True] * 2 + [False]
    assert run.metrics["forgetting"] is None and run.metrics["backward_transfer"] is None
    assert sorted(set(run.events["step"]["epoch"].tolist())) == [1, 2]


def test_methods_on_features_leave_images_alone(tmp_path, prepare):
    for name in ("linear", "ncm", "slda", "zero_shot"):
        assert prepare(name, tmp_path).strategy.reads() == {"features"}


def test_learning_rates_by_hand():
    def rates(**fields):
        strategy = L2P(lr_base=0.0, lr=1.0, epochs=4, **fields)
        return [strategy.learning_rate_at(epoch, step, 2) for epoch in range(4) for step in range(2)]

    root = 0.5**0.5
    assert rates() == [1] * 8
    assert rates(schedule="cosine")[::2] == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    # an epoch of warm-up; then the cosine of 0, 1 and 2 epochs of four, the same for both steps
    once = [1, 1, (1 + root) / 2, (1 + root) / 2, 0.5, 0.5]
    assert rates(schedule="cosine_epochs", warmup_epochs=1, warmup_lr=0.1) == pytest.approx([0.1, 0.1, *once])
    # cos of 0, 33, 66 and 99 % of a quarter turn
    quarter = [rate for rate in (1.0, 0.8686315, 0.5090414, 0.01570732) for _ in range(2)]
    assert rates(schedule="quarter_cosine") == pytest.approx(quarter)


# zero-shot


def test_zero_shot_is_the_cosine_to_the_averaged_texts(tmp_path, prepare):
    job = prepare("zero_shot", tmp_path, templates="a photo of a {}.,{}")
    learner, tower = job.learner()
    features = torch.randn(3, tower.out_dim, generator=torch.Generator().manual_seed(0))
    logits = as_outputs(learner(Batch(None, features))).logits
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        for k, name in enumerate(job.benchmark.info.class_names):
            texts = unit(job.backbone.text([f"a photo of a {name}.", name]), dim=1)
            expected = job.backbone.text.logit_scale * unit(features, dim=1) @ unit(texts.mean(0), dim=0)
            assert torch.allclose(logits[:, k], expected, atol=1e-4)


def test_zero_shot_scores_classes_before_they_come_and_trains_nothing(tmp_path, finished):
    run = finished("zero_shot", tmp_path)
    assert len(run.matrix["correct"]) == 4 and run.matrix["correct"][0] == run.matrix["correct"][-1]
    assert run.metrics["forward_transfer"] == 0 and run.summary["cost"]["trainable_parameters"] == 0


@pytest.mark.parametrize(
    "strategy, fields", [("zero_shot", {}), ("lora", {"tower": "text"}), ("bias", {"tower": "both"})]
)
def test_class_names_are_read_by_a_text_tower(tmp_path, strategy, fields):
    (by_default,) = config.plan({"strategy": strategy, "out": tmp_path}, fields, None)
    assert by_default.backbone == "clip_micro"
    (without,) = config.plan({"strategy": strategy, "out": tmp_path, "backbone": "vit_nano"}, fields, None)
    with pytest.raises(RequestError, match="vit_nano has none. clip_micro and clip:<model>/<tag>"):
        Job.prepare(without)


def test_zero_shot_wants_templates_with_a_place_for_the_name(tmp_path, plan):
    with pytest.raises(RequestError, match="at the position of the class name"):
        plan("zero_shot", tmp_path, templates="a photo")


# L2P


@pytest.fixture
def l2p_learner(tmp_path, prepare):
    """(job, learner, tower) for fields of L2P."""

    def make(**fields):
        job = prepare("l2p", tmp_path, **fields)
        return job, *job.learner()

    return make


def chosen_by(learner, batch):
    """(B,N) prompts that a learner chooses for the images of a batch."""
    return learner.choose(learner.pool.similarity(learner.query(batch)))


def l2p_batch(tower, count=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return Batch(images, tower(images), torch.arange(count) % 2)


def test_l2p_chooses_the_keys_nearest_to_the_query(l2p_learner):
    _, learner, tower = l2p_learner(top_k="2")
    batch = l2p_batch(tower)
    chosen = chosen_by(learner.eval(), batch)
    keys = learner.pool.keys.detach()
    for i, query in enumerate(batch.features):
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        assert chosen[i].tolist() == sorted(range(10), key=lambda m: -cosines[m])[:2]


def test_l2p_reads_the_mean_of_the_prompts_outputs(l2p_learner):
    """Against timm's own blocks, with the prompts put in front by hand."""
    _, learner, tower = l2p_learner(top_k="3")
    batch = l2p_batch(tower)
    learner.eval()
    with torch.no_grad():
        chosen = chosen_by(learner, batch)
        prompts = torch.stack([torch.cat([learner.pool.prompts[m] for m in ids]) for ids in chosen])
        vit = tower.vit
        x = torch.cat([prompts, vit._pos_embed(vit.patch_embed(batch.images))], dim=1)
        x = vit.norm(vit.blocks(x))
        expected = learner.head(x[:, : 3 * 5].mean(dim=1))
        assert torch.allclose(learner(batch).logits, expected, atol=1e-5)


def test_l2p_loss_is_cross_entropy_less_the_pull_and_only_the_pull_moves_keys(l2p_learner):
    job, learner, tower = l2p_learner(top_k="2", pull="0.5")
    batch = l2p_batch(tower)
    classes = (0, 1)
    experience = dataclasses.replace(job.benchmark.train_stream[0], classes=classes)
    s = Step(State(learner.train(), job.benchmark.info, 0, seen=classes, current=experience), experience.rows, batch)
    s.outputs = learner(batch)
    loss = job.strategy.loss(s)
    cross_entropy = torch.nn.functional.cross_entropy(s.logits[:, :2], batch.labels)
    pull = torch.nn.functional.cosine_similarity(
        batch.features[:, None], learner.pool.keys[chosen_by(learner, batch)], dim=-1
    )
    assert torch.isclose(loss, cross_entropy - 0.5 * pull.sum(1).mean(), atol=1e-6)
    (key_gradient,) = torch.autograd.grad(cross_entropy, learner.pool.keys, retain_graph=True, allow_unused=True)
    assert key_gradient is None
    loss.backward()
    chosen = set(chosen_by(learner, batch).flatten().tolist())
    moved = {m for m in range(10) if learner.pool.keys.grad[m].abs().sum() > 0}
    assert moved == chosen


def test_l2p_batch_vote_gives_every_image_the_same_prompts(l2p_learner):
    _, learner, tower = l2p_learner(selection_test="batch", top_k="2")
    chosen = chosen_by(learner.eval(), l2p_batch(tower))
    assert len({tuple(ids) for ids in chosen.tolist()}) == 1
    assert L2P(selection_test="batch").caveats() and not L2P().caveats()


def test_l2p_diversity_prefers_prompts_used_less_and_changes_nothing_at_first(l2p_learner):
    _, learner, tower = l2p_learner(diversity="true", top_k="1")
    batch = l2p_batch(tower)
    plain = chosen_by(learner.eval(), batch)
    assert torch.equal(chosen_by(learner.train(), batch), plain), "no use yet: distance alone decides"
    favourite = int(plain[0])
    learner.used_before[favourite] = 10**9
    assert int(chosen_by(learner, batch)[0]) != favourite


def test_l2p_queries_do_not_move_with_the_crop_unless_asked(l2p_learner):
    for query in ("clean", "augmented"):
        _, learner, tower = l2p_learner(query=query)
        batch = l2p_batch(tower)
        other = dataclasses.replace(batch, images=batch.images + 1)
        moved = not torch.equal(learner.train().query(batch), learner.query(other))
        assert moved == (query == "augmented")


def test_l2p_presets_set_the_published_learning_rates():
    rates = {name: L2P(**values).learning_rate for name, values in L2P.presets.items()}
    assert rates["paper"] == pytest.approx(0.03)
    assert rates["official"] == pytest.approx(0.015)
    assert rates["port"] == pytest.approx(0.001875)
    assert all(L2P(**values).selection_test == "image" for values in L2P.presets.values())


def test_l2p_refuses_what_cannot_be():
    for bad, words in (({"top_k": 11}, "top_k=11"), ({"pool_size": 0}, "pool_size"), ({"crop_min": 0.0}, "crop_min")):
        with pytest.raises(ValueError, match=words):
            L2P(**bad)
    with pytest.raises(RequestError, match="top_k=11"):
        config.make(L2P, {"top_k": 11}, "l2p")


def test_l2p_logs_how_often_each_prompt_was_chosen(tmp_path, finished):
    run = finished("l2p", tmp_path, top_k="2")
    log = run.events["log"]
    usage = [value for name, value in zip(log["name"], log["value"], strict=True) if name == "prompt_usage"]
    assert [sum(counts) for counts in usage] == [2 * 12 * 2] * 3, "epochs x images x prompts an image"


@pytest.mark.parametrize("preset", [
    pytest.param((name, preset), marks=pytest.mark.xdist_group(name), id=f"{name}-{preset}")
    for name in STRATEGIES for preset in plugins.load("strategies", name).presets
])  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_preset_runs(preset, precision, tmp_path, finished):
    name, preset = preset
    scenario = {"train_per_class": 3, "test_per_class": 2}
    less = {"epochs": 1} | ({"projections": 50} if name == "ranpac" else {})  # 10,000 make a matrix of 800 MB
    run = finished(name, tmp_path, scenario, preset=preset, precision=precision, **less)
    assert np.isfinite(run.events.get("step", {}).get("loss", [])).all()  # none where nothing is trained
    for key, value in plugins.load("strategies", name).presets[preset].items():
        if key not in ("backbone", *less):
            assert run.config["strategy"][key] == (list(value) if isinstance(value, tuple) else value)
