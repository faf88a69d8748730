"""On a real GPU: the CPU's results within a bound, the same bits every time, and no step that waits. Skipped elsewhere.

`make gpu` runs these tests. The bounds: 1e-3 in float32, without TF32; 0.05 in bfloat16, whose numbers have 8 bits.
"""

import numpy as np
import pytest
import torch

from clsim.backbones.features import BLOCK, FeatureBank
from clsim.backbones.load import load_backbone
from clsim.backbones.towers import attention
from clsim.data import batches
from clsim.data.batches import Loader
from clsim.data.transforms import Augmentation, InputSpec
from clsim.hardware import peak_memory, reset_peak_memory, torch_settings, uses_tf32
from clsim.loop import Loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.usefixtures("without_pictures", "_settings"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
BOUNDS = [pytest.param(torch.float32, 1e-3, id="fp32"), pytest.param(torch.bfloat16, 0.05, id="bf16")]
STRATEGIES = ("linear", "l2p", "finetune", "coda_prompt", "lora")


@pytest.fixture
def _settings():
    """Those of a run: deterministic, without TF32."""
    with torch_settings(None):
        yield


def near(found, expected, bound):
    return torch.allclose(found.detach().float().cpu(), expected.detach().float(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype, bound", BOUNDS)
@pytest.mark.parametrize("name", ["vit_nano", "vit_micro"])
@torch.no_grad()
def test_a_towers_features_are_those_of_the_cpu(name, dtype, bound):
    tower = load_backbone(name).image
    side = tower.pixels.size
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = tower(images)
    assert not uses_tf32()
    assert near(tower.to(GPU, dtype)(images.to(GPU)), expected, bound)


@pytest.mark.parametrize("dtype, bound", BOUNDS)
def test_attention_and_its_gradients_are_those_of_the_cpu_and_repeatable(dtype, bound):
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(4, 3, 50, 64, generator=draw).requires_grad_() for _ in range(3)]
    mask = torch.full((50, 50), -torch.inf).triu(1)
    expected = attention(*given, mask)
    theirs = torch.autograd.grad(expected.sum(), given)
    there = [part.detach().to(GPU, dtype).requires_grad_() for part in given]
    found = attention(*there, mask.to(GPU))
    first = torch.autograd.grad(found.sum(), there, retain_graph=True)
    again = torch.autograd.grad(found.sum(), there)
    assert near(found, expected, bound) and all(near(*pair, bound) for pair in zip(first, theirs, strict=True))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("transforms", ["smooth", "torchvision", "tensorflow"])
def test_batches_are_those_of_the_cpu_whether_the_table_is_kept_there_or_sent(
    kept, transforms, make_table, monkeypatch
):
    monkeypatch.setattr(batches, "KEPT", batches.KEPT if kept else 0)
    table, rows, how = make_table(3, 7), np.array([3, 20, 0]), Augmentation(transforms=transforms)
    there, here = (Loader(table, InputSpec(16), {"images"}, device) for device in (GPU, CPU))
    there.upcoming = rows
    for _ in range(2):  # the second one was read ahead
        found, expected = (each.train(rows, how, torch.Generator().manual_seed(0)) for each in (there, here))
        assert near(found.images, expected.images, 1e-3) and found.labels.tolist() == expected.labels.tolist()
    assert (there._kept is not None) == kept
    shown = zip(there.unlabelled(rows, 2), here.unlabelled(rows, 2), strict=True)
    assert all(near(found.images, expected.images, 1e-3) for (_, found), (_, expected) in shown)


def test_the_bank_is_that_of_the_cpu_in_larger_blocks(make_table, tmp_path):
    tower, table = load_backbone("vit_nano").image, make_table(5, 40)
    rows = np.arange(len(table))
    expected = FeatureBank(tower, table, CPU, tmp_path).rows(rows)
    bank = FeatureBank(tower.to(GPU), table, GPU, tmp_path)
    assert bank.block > BLOCK and near(bank.rows(rows), expected, 1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_has_the_losses_of_the_cpu(name, finished, tmp_path):
    here, there = (finished(name, tmp_path, device=device).events["step"]["loss"] for device in ("cpu", "cuda"))
    assert np.allclose(there[:3], here[:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_is_the_same_bits_again_and_after_an_interruption(
    name, precision, finished, broken_off, same_run, tmp_path
):
    given = {"device": "cuda", "precision": precision, "checkpoint_minutes": 0}
    whole = finished(name, tmp_path / "whole", **given)
    same_run(finished(name, tmp_path / "again", **given), whole)
    assert broken_off(2, lambda: finished(name, tmp_path / "broken", **given))["inside"]
    same_run(finished(name, tmp_path / "broken", **given), whole)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_step_waits_for_the_gpu(name, finished, tmp_path, monkeypatch):
    step = Loop._step

    def watched(*args):
        torch.cuda.set_sync_debug_mode("error")  # torch raises where the host would wait
        try:
            step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    finished(name, tmp_path / "warm", device="cuda", epochs=1)  # sets of classes, which are made once
    monkeypatch.setattr(Loop, "_step", watched)
    assert len(finished(name, tmp_path / "watched", device="cuda", epochs=1).events["step"]["loss"]) == 9


def test_memory_is_counted_on_the_gpu(finished, tmp_path):
    run = finished("l2p", tmp_path, device="cuda")
    assert run.summary["cost"]["peak_memory_bytes"] > 0
    reset_peak_memory()
    room = torch.empty(64 << 20, dtype=torch.uint8, device=GPU)
    assert peak_memory() >= room.nbytes
