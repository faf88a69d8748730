"""Runs on an NVIDIA GPU: near those on the CPU, repeatable, resumable, within memory. Skipped where there is none."""

import pytest
import torch

from clsim import config, hardware, plugins, runner
from clsim.backbones.load import load_backbone
from clsim.data.transforms import evaluation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU"),
]
STRATEGIES = plugins.names("strategies")
SMALL = {"scenario.train_per_class": 8, "scenario.test_per_class": 4, "batch_size": 4}


def run(name, out, device, precision="fp32", **given):
    cls = plugins.load("strategies", name)
    backbone = "clip_nano" if cls().needs_text else "vit_nano"
    options = {"strategy": name, "backbone": backbone, "device": device, "precision": precision, "out": str(out)}
    fields = SMALL | ({"epochs": 1} if cls().has_gradients else {}) | given
    known = {key: fields.pop(key) for key in list(fields) if key in config.OPTIONS}
    (made,) = runner.run_all(config.plan(options | known, fields), quiet=True)
    return made


def losses(made):
    return made.events["step"]["loss"] if "step" in made.events else []


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_in_float32_is_that_of_the_cpu(name, tmp_path):
    ours, theirs = run(name, tmp_path, "cuda"), run(name, tmp_path, "cpu")
    first = slice(0, 4)  # later steps carry on the differences of earlier ones
    assert losses(ours)[first] == pytest.approx(losses(theirs)[first], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["l2p", "coda_prompt", "vpt_deep", "finetune", "coop", "mcc"])
def test_a_run_in_bfloat16_begins_near_that_in_float32(name, tmp_path):
    ours, theirs = run(name, tmp_path, "cuda", "bf16"), run(name, tmp_path, "cuda", "fp32")
    assert losses(ours)[:1] == pytest.approx(losses(theirs)[:1], rel=0.05, abs=0.05)  # 8 bits of mantissa, 6 blocks


@pytest.mark.parametrize("name", ["l2p", "finetune", "coop", "mcc"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_run_again_is_bit_identical(name, precision, tmp_path, same_run):
    same_run(*(run(name, tmp_path / place, "cuda", precision) for place in ("a", "b")))


@pytest.mark.parametrize("name", ["l2p", "finetune", "er"])
def test_an_interrupted_run_ends_bit_identical(name, tmp_path, broken_off, same_run):
    whole = run(name, tmp_path / "whole", "cuda")
    broken_off(2, lambda: run(name, tmp_path / "broken", "cuda", checkpoint_minutes=0))
    same_run(run(name, tmp_path / "broken", "cuda"), whole)


def test_features_are_those_of_the_cpu():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tower = load_backbone("vit_micro").image
    with torch.no_grad(), hardware.torch_settings(None):
        here = tower(evaluation(images, tower.pixels))
        there = tower.cuda()(evaluation(images.cuda(), tower.pixels)).cpu()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_a_long_run_keeps_no_memory(tmp_path):
    run("finetune", tmp_path / "short", "cuda")
    before = torch.cuda.memory_allocated()
    run("finetune", tmp_path / "long", "cuda", epochs=5)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
