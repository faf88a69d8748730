"""Prompt pools in whole small runs: what they report of detected tasks, and how often prompts were selected."""

import pytest
import torch
from torch.nn.functional import normalize

from clsim import checkpoint, config, runner
from clsim.data.transforms import evaluation


def digits_run(strategy, out, parts=(), **fields):
    small = {"scenario.train_per_class": "10", "scenario.test_per_class": "5", "epochs": "1"}
    options = {"strategy": strategy, "backbone": "vit_nano", "out": out, "precision": "fp32", "with": parts}
    (only,) = config.plan(options, small | fields, None)
    job = runner.Job.prepare(only)
    return job, job.execute(fresh=False, quiet=True)


def test_dualprompt_s_detections_in_a_run_are_those_counted_by_hand(tmp_path):
    job, run = digits_run("dualprompt", tmp_path)
    saved = checkpoint.load(run.directory / "checkpoint")["learner"]
    keys = normalize(torch.stack([saved[f"keys.each.{task}"] for task in range(5)]), dim=1)
    by_hand = []
    for test in job.benchmark.test_stream:
        images = evaluation(torch.from_numpy(test.table.pixels(test.rows)), job.backbone.image.pixels)
        with torch.no_grad():
            features = job.backbone.image(images)
        nearest = (normalize(features, dim=1) @ keys.T).argmax(dim=1)
        by_hand.append(int((nearest == test.index).sum()))
    assert run.matrix["task_correct"][-1] == by_hand and run.matrix["total"] == [10] * 5
    assert run.summary["task_accuracy"] == sum(by_hand) / 50
    assert [sum(count is not None for count in row) for row in run.matrix["task_correct"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("strategy, fields", [("dualprompt", {"scenario.protocol": "task"}), ("coda_prompt", {})])
def test_no_detection_is_reported_where_the_task_is_revealed_or_never_detected(strategy, fields, tmp_path):
    _, run = digits_run(strategy, tmp_path, **fields)
    assert run.summary["task_accuracy"] is None and "task_correct" not in run.matrix


@pytest.mark.parametrize(
    "parts, expected",
    [
        ((), [40] * 5),
        ("er:20", [40, 80, 80, 80, 80]),  # as many remembered images are in the step's own batch
        ("der:0.5:0.5:20", [40] * 5),
        ("lwf:1", [40] * 5),
    ],
)
def test_l2p_counts_the_prompts_of_each_step_s_own_batch_however_often_forward_is_called(parts, expected, tmp_path):
    """20 images with 2 prompts each."""
    _, run = digits_run("l2p", tmp_path, parts, top_k="2")
    log = run.events["log"]
    usage = [sum(value) for name, value in zip(log["name"], log["value"], strict=True) if name == "prompt_usage"]
    assert usage == expected


@pytest.mark.parametrize("name, preset", [("l2p", "official"), ("dualprompt", "official"), ("coda_prompt", "release")])
def test_runs_of_published_presets_end_bit_identical_after_interruptions(
    name, preset, tmp_path, broken_off, finished, same_run
):
    """Frozen weights have gradients only inside a step, and experts are handed down again when `begin` is repeated."""
    fields = {"preset": preset, "epochs": 2, "batch_size": 5, "checkpoint_minutes": 0}
    whole = finished(name, tmp_path / "whole", **fields)
    for saves in (5, 3):
        broken_off(saves, lambda: finished(name, tmp_path / "broken", **fields))
    same_run(finished(name, tmp_path / "broken", **fields), whole)
    kept = checkpoint.load(whole.directory / "checkpoint")["learner"]
    assert not [weight for weight in kept if "tower" in weight], "nothing of the frozen tower is saved"
