"""What every strategy must do, parametrised over all that are registered; and what each one promises."""

import dataclasses

import numpy as np
import pytest
import torch

from clsim import checkpoint, config, plugins, runner
from clsim.data.batches import Batch
from clsim.data.streams import StreamInfo
from clsim.errors import RequestError
from clsim.events import State
from clsim.learner import build_learner
from clsim.runner import Job
from clsim.strategies.l2p import L2P
from clsim.strategy import allowed_classes

SMALL = {"scenario.train_per_class": "10", "scenario.test_per_class": "5", "epochs": "2", "batch_size": "8"}
STRATEGIES = plugins.names("strategies")


def backbone_for(strategy):
    return "clip_nano" if plugins.load("strategies", strategy)().needs_text else "vit_nano"


def plan(strategy, out, **fields):
    options = {"strategy": strategy, "backbone": backbone_for(strategy), "out": out, "precision": "fp32"}
    (only,) = config.plan(options, SMALL | fields, None)
    return only


def finished(strategy, out, **fields):
    (run,) = runner.run_all([plan(strategy, out, **fields)], quiet=True)
    return run


def final_weights(run):
    return checkpoint.load(run.directory / "checkpoint")["learner"]


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request, tmp_path_factory):
    """An unbroken run of every strategy."""
    return finished(request.param, tmp_path_factory.mktemp("whole"))


def test_finishes_with_every_file_of_the_contract(whole):
    files = {path.name for path in whole.directory.iterdir()}
    assert {"summary.json", "matrix.json", "config.toml", "env.json", "events.jsonl", "checkpoint"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert whole.summary["strategy"] == whole.directory.parent.name
    assert 0 <= whole.metrics["average_accuracy"] <= 1
    reasons = whole.summary["notes"]
    assert all(value is not None or reasons[name] for name, value in whole.metrics.items())


def test_nothing_is_kept_twice_under_two_names(whole):
    kept = final_weights(whole)
    varied = [name for name, tensor in kept.items() if tensor.numel() > 1 and len(tensor.unique()) > 1]
    twins = [(a, b) for i, a in enumerate(varied) for b in varied[:i] if torch.equal(kept[a], kept[b])]
    assert not twins


def test_the_same_run_again_is_bit_identical(whole, tmp_path):
    again = finished(whole.summary["strategy"], tmp_path)
    assert again.matrix == whole.matrix
    assert again.metrics == whole.metrics
    same(final_weights(again), final_weights(whole))


@pytest.mark.parametrize("last_save", [1, 2, 4])
def test_an_interrupted_run_ends_bit_identical(whole, last_save, tmp_path, broken_off):
    name = whole.summary["strategy"]
    broken_off(last_save, lambda: finished(name, tmp_path))
    resumed = finished(name, tmp_path)
    assert resumed.matrix == whole.matrix
    assert resumed.metrics == whole.metrics
    same(final_weights(resumed), final_weights(whole))
    steps = resumed.events.get("step", {}).get("step", np.array([]))
    assert steps.tolist() == list(range(1, len(steps) + 1)), "no step is recorded twice or left out"


def test_steps_train_all_that_asks_for_gradients_and_nothing_else(whole, tmp_path):
    name = whole.summary["strategy"]
    job = Job.prepare(plan(name, tmp_path))
    learner, _ = build_learner(job.strategy, job.backbone, job.benchmark.info, 0, torch.device("cpu"), bf16=False)
    before = {key: tensor.clone() for key, tensor in learner.state_dict().items()}
    trained = {key for key, p in learner.named_parameters() if p.requires_grad}
    learner.load_state_dict(final_weights(whole), strict=False)
    moved = {key for key, tensor in learner.state_dict().items() if not torch.equal(tensor, before[key])}
    buffers = {key for key, _ in learner.named_buffers()}
    assert moved - buffers == trained
    assert trained or not job.strategy.has_gradients


def test_a_prediction_depends_on_its_image_alone(whole):
    images = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)
    predictor = whole._predictor
    logits = predictor.logits(images)
    order = np.random.default_rng(1).permutation(70)
    assert torch.allclose(predictor.logits(images[order]), logits[order], atol=1e-4)
    assert torch.allclose(torch.cat([predictor.logits(images[i : i + 1]) for i in range(9)]), logits[:9], atol=1e-4)


def test_loaded_learner_predicts_as_the_evaluation_did(whole, tmp_path):
    job = Job.prepare(plan(whole.summary["strategy"], tmp_path))
    correct = []
    for experience in job.benchmark.test_stream:
        predicted = whole.predict(np.take(experience.table.images, experience.rows, axis=0))
        correct.append(int((predicted == experience.labels).sum()))
    assert correct == whole.matrix["correct"][-1]


def test_domain_stream_is_scored_before_training(whole, domain_tree, tmp_path):
    name = whole.summary["strategy"]
    options = {"scenario": "folder", "strategy": name, "out": tmp_path, "data_dir": domain_tree}
    options["backbone"] = backbone_for(name)
    fields = {"scenario.protocol": "domain", "epochs": "1"}
    (run,) = runner.run_all(config.plan(options, fields, None), quiet=True)
    rows = run.matrix["correct"]
    if name == "joint":
        assert [row[0] is None for row in rows] == [True, False]
    else:
        assert len(rows) == 3 and all(cell is not None for row in rows for cell in row)
        assert run.metrics["forward_transfer"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_pair_of_domains_is_learned_and_drawn(name, tmp_path):
    options = {"scenario": "glyph_pair", "strategy": name, "backbone": backbone_for(name), "out": tmp_path}
    fields = {"epochs": "1", "scenario.train_per_class": "2", "scenario.test_per_class": "2"}
    (run,) = runner.run_all(config.plan(options, fields, None), quiet=True)
    assert 0 <= run.metrics["target_accuracy"] <= 1
    assert (run.directory / "pictures" / "features.png").exists()


def test_ncm_equals_class_means_by_hand(tmp_path):
    run = finished("ncm", tmp_path)
    head = run._predictor.learner.head
    job = Job.prepare(plan("ncm", tmp_path / "other"))
    experience = job.benchmark.train_stream[2]
    images = np.take(experience.table.images, experience.rows[experience.labels == experience.classes[0]], axis=0)
    from clsim.data.transforms import evaluation

    with torch.no_grad():
        features = job.backbone.image(evaluation(torch.from_numpy(images), job.backbone.image.pixels))
    mean = head.sums[experience.classes[0]] / head.counts[experience.classes[0]]
    assert head.counts[experience.classes[0]] == 10
    assert torch.allclose(mean.float(), features.mean(0), atol=1e-5)


def test_joint_learns_once_and_reports_the_final_row_only(tmp_path):
    run = finished("joint", tmp_path)
    assert [row == [None] * 5 for row in run.matrix["correct"]] == [True] * 4 + [False]
    assert run.metrics["forgetting"] is None and run.metrics["backward_transfer"] is None
    assert sorted(set(run.events["step"]["epoch"].tolist())) == [1, 2]


def test_methods_on_features_leave_images_alone(tmp_path):
    for name in ("linear", "ncm", "zero_shot"):
        strategy = Job.prepare(plan(name, tmp_path)).strategy
        assert strategy.reads() == {"features"}


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


# zero-shot


def test_zero_shot_is_the_cosine_to_the_averaged_texts(tmp_path):
    templates = "a photo of a {}.,{}"
    job = Job.prepare(plan("zero_shot", tmp_path, templates=templates))
    learner, tower = build_learner(job.strategy, job.backbone, job.benchmark.info, 0, torch.device("cpu"), False)
    features = torch.randn(3, tower.out_dim, generator=torch.Generator().manual_seed(0))
    logits = learner(Batch(None, features))
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        for k, name in enumerate(job.benchmark.info.class_names):
            texts = unit(job.backbone.text([f"a photo of a {name}.", name]), dim=1)
            expected = job.backbone.text.logit_scale * unit(features, dim=1) @ unit(texts.mean(0), dim=0)
            assert torch.allclose(logits[:, k], expected, atol=1e-4)


def test_zero_shot_scores_classes_before_they_come_and_trains_nothing(tmp_path):
    run = finished("zero_shot", tmp_path)
    assert len(run.matrix["correct"]) == 6 and run.matrix["correct"][0] == run.matrix["correct"][-1]
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


def test_zero_shot_wants_templates_with_a_place_for_the_name(tmp_path):
    with pytest.raises(RequestError, match="where the class name goes"):
        plan("zero_shot", tmp_path, templates="a photo")


# L2P


def l2p_learner(tmp_path, **fields):
    job = Job.prepare(plan("l2p", tmp_path, **fields))
    learner, tower = build_learner(job.strategy, job.backbone, job.benchmark.info, 0, torch.device("cpu"), False)
    return job, learner, tower


def l2p_batch(tower, count=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return Batch(images, tower(images), torch.arange(count) % 2)


def test_l2p_chooses_the_keys_nearest_to_the_query(tmp_path):
    _, learner, tower = l2p_learner(tmp_path, top_k="2")
    batch = l2p_batch(tower)
    chosen = learner.eval().choose(batch.features)
    keys = learner.pool.keys.detach()
    for i, query in enumerate(batch.features):
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        assert chosen[i].tolist() == sorted(range(10), key=lambda m: -cosines[m])[:2]


def test_l2p_reads_the_mean_of_the_prompts_outputs(tmp_path):
    """Against timm's own blocks, with the prompts put in front by hand."""
    _, learner, tower = l2p_learner(tmp_path, top_k="3")
    batch = l2p_batch(tower)
    learner.eval()
    with torch.no_grad():
        chosen = learner.choose(batch.features)
        prompts = torch.stack([torch.cat([learner.pool.prompts[m] for m in ids]) for ids in chosen])
        vit = tower.vit
        x = torch.cat([prompts, vit._pos_embed(vit.patch_embed(batch.images))], dim=1)
        x = vit.norm(vit.blocks(x))
        expected = learner.head(x[:, : 3 * 5].mean(dim=1))
        assert torch.allclose(learner(batch), expected, atol=1e-5)


def test_l2p_loss_is_cross_entropy_less_the_pull_and_only_the_pull_moves_keys(tmp_path):
    job, learner, tower = l2p_learner(tmp_path, top_k="2", pull="0.5")
    batch = l2p_batch(tower)
    classes = (0, 1)
    experience = dataclasses.replace(job.benchmark.train_stream[0], classes=classes)
    s = State(learner.train(), job.benchmark.info, 0, experience=experience, seen=classes, batch=batch)
    s.logits = learner(batch)
    loss = job.strategy.loss(s)
    cross_entropy = torch.nn.functional.cross_entropy(s.logits[:, :2], batch.labels)
    pull = torch.nn.functional.cosine_similarity(
        batch.features[:, None], learner.pool.keys[learner.choose(batch.features)], dim=-1
    )
    assert torch.isclose(loss, cross_entropy - 0.5 * pull.sum(1).mean(), atol=1e-6)
    (key_gradient,) = torch.autograd.grad(cross_entropy, learner.pool.keys, retain_graph=True, allow_unused=True)
    assert key_gradient is None
    loss.backward()
    chosen = set(learner.choose(batch.features).flatten().tolist())
    moved = {m for m in range(10) if learner.pool.keys.grad[m].abs().sum() > 0}
    assert moved == chosen


def test_l2p_batch_vote_gives_every_image_the_same_prompts(tmp_path):
    _, learner, tower = l2p_learner(tmp_path, selection_test="batch", top_k="2")
    chosen = learner.eval().choose(l2p_batch(tower).features)
    assert len({tuple(ids) for ids in chosen.tolist()}) == 1
    assert L2P(selection_test="batch").caveats() and not L2P().caveats()


def test_l2p_diversity_prefers_prompts_used_less_and_changes_nothing_at_first(tmp_path):
    _, learner, tower = l2p_learner(tmp_path, diversity="true", top_k="1")
    batch = l2p_batch(tower)
    plain = learner.eval().choose(batch.features)
    assert torch.equal(learner.train().choose(batch.features), plain), "no use yet: distance alone decides"
    favourite = int(plain[0])
    learner.used_before[favourite] = 10**9
    assert int(learner.choose(batch.features)[0]) != favourite


def test_l2p_queries_do_not_move_with_the_crop_unless_asked(tmp_path):
    for query in ("clean", "augmented"):
        _, learner, tower = l2p_learner(tmp_path / query, query=query)
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


def test_l2p_logs_how_often_each_prompt_was_chosen(tmp_path):
    run = finished("l2p", tmp_path, top_k="2")
    log = run.events["log"]
    usage = [value for name, value in zip(log["name"], log["value"], strict=True) if name == "prompt_usage"]
    assert [sum(counts) for counts in usage] == [2 * 20 * 2] * 5, "epochs x images x prompts an image"


def test_mask_decides_which_logits_the_loss_tells_apart():
    info = StreamInfo(tuple("abcdef"), (), "class", 3)
    learner = torch.nn.Identity()
    batch = Batch(torch.zeros(3, 1), labels=torch.tensor([2, 3, 0]), replayed=1)

    class Now:
        classes = (2, 3)

    s = State(learner, info, 0, experience=Now, seen=(0, 1, 2, 3), batch=batch, logits=torch.zeros(3, 6))
    assert allowed_classes(s, "current").int().tolist() == [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]]
    assert allowed_classes(s, "seen").int().tolist() == [[1, 1, 1, 1, 0, 0]] * 3
    assert allowed_classes(s, "all").all()


@pytest.mark.parametrize("name, preset", [(n, p) for n in STRATEGIES for p in plugins.load("strategies", n).presets])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_preset_runs(name, preset, precision, tmp_path):
    options = {
        "strategy": name,
        "backbone": backbone_for(name),
        "out": tmp_path,
        "preset": preset,
        "precision": precision,
    }
    small = {"scenario.train_per_class": "4", "scenario.test_per_class": "2", "epochs": "1"}
    (run,) = runner.run_all(config.plan(options, small, None), quiet=True)
    assert np.isfinite(run.events.get("step", {}).get("loss", [])).all()  # none where nothing is trained
    for key, value in plugins.load("strategies", name).presets[preset].items():
        assert run.config["strategy"][key] == (list(value) if isinstance(value, tuple) else value)
