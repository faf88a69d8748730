"""The feature bank: the same bits whoever fills it, whenever and in whatever order."""

import multiprocessing

import numpy as np
import pytest
import torch

from clsim import rng
from clsim.backbones import bank_files, features
from clsim.backbones.features import BLOCK, FeatureBank, View
from clsim.backbones.load import load_backbone
from clsim.data.transforms import Augmentation, augmented, evaluation

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def tower(request):
    return load_backbone("vit_nano").image.to(request.param)


@pytest.fixture(scope="module")
def table(make_table):
    return make_table(num_classes=5, per_class=21)  # 105 rows: three whole blocks and a part of one


def contents(bank):
    return (bank.folder / "features").read_bytes(), (bank.folder / "filled").read_bytes()


def test_rows_are_the_towers_own_features(tower, table, tmp_path):
    bank = FeatureBank(tower, table, CPU, tmp_path)
    rows = np.array([104, 3, 3, 40])
    with torch.no_grad():
        expected = tower(evaluation(torch.from_numpy(np.take(table.images, rows, axis=0)), tower.pixels)).float()
    found = bank.rows(rows)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5 if tower.dtype == torch.float32 else 0.05)


def test_any_order_fills_the_same_bits(tower, table, tmp_path):
    at_once = FeatureBank(tower, table, CPU, tmp_path / "a")
    at_once.fill(np.arange(len(table)))
    bit_by_bit = FeatureBank(tower, table, CPU, tmp_path / "b")
    for row in np.random.default_rng(0).permutation(len(table)):
        bit_by_bit.rows(np.array([row]))
    assert contents(at_once) == contents(bit_by_bit)


def test_only_blocks_asked_for_are_computed_and_only_once(tower, table, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(features, "evaluation", lambda *args: calls.append(1) or evaluation(*args))
    bank = FeatureBank(tower, table, CPU, tmp_path)
    bank.rows(np.array([0, 1, BLOCK - 1]))
    bank.rows(np.array([5]))
    assert len(calls) == 1
    again = FeatureBank(tower, table, CPU, tmp_path)
    again.rows(np.array([2, BLOCK]))
    assert len(calls) == 2, "what another bank computed is read, not computed"


def test_interrupted_block_is_computed_again(tower, table, tmp_path, monkeypatch):
    bank = FeatureBank(tower, table, CPU, tmp_path)
    real, writes = bank_files.os.pwrite, []

    def pwrite(*args):
        writes.append(args)
        if len(writes) == 2:  # the data is there, the flag is not
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(bank_files.os, "pwrite", pwrite)
    with pytest.raises(KeyboardInterrupt):
        bank.fill(np.arange(len(table)))
    assert set((bank.folder / "filled").read_bytes()) == {0}
    whole = FeatureBank(tower, table, CPU, tmp_path)
    whole.fill(np.arange(len(table)))
    other = FeatureBank(tower, table, CPU, tmp_path / "other")
    other.fill(np.arange(len(table)))
    assert contents(whole) == contents(other)


def _fill(tower, table, folder, seed):
    torch.set_num_threads(1)
    bank = FeatureBank(tower, table, CPU, folder)
    for row in np.random.default_rng(seed).permutation(len(table)):
        bank.rows(np.array([row]))


def test_two_processes_fill_one_bank(tower, table, tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tower, table, tmp_path, seed)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    shared = FeatureBank(tower, table, CPU, tmp_path)
    assert set(contents(shared)[1]) == {1}
    whole = np.arange(len(table))
    assert torch.allclose(shared.rows(whole), FeatureBank(tower, table, CPU, tmp_path / "own").rows(whole), atol=1e-2)


def test_another_tower_pixels_or_table_has_another_bank(tower, table, make_table, tmp_path):
    folder = FeatureBank(tower, table, CPU, tmp_path).folder
    assert FeatureBank(tower, table, CPU, tmp_path).folder == folder
    assert FeatureBank(tower, make_table(seed=1), CPU, tmp_path).folder != folder
    changed = load_backbone("vit_nano").image.to(tower.dtype)
    changed.vit.norm.bias[0] += 1
    assert FeatureBank(changed, table, CPU, tmp_path).folder != folder


def test_a_full_disk_leaves_no_bank(tower, table, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank_files, "sealed", full)
    with pytest.raises(OSError, match="No space"):
        FeatureBank(tower, table, CPU, tmp_path)
    assert not list((tmp_path / "features").iterdir())


def test_views_are_augmented_images_of_their_own(tower, table, tmp_path):
    how = Augmentation(0.5)
    rows = np.array([3, 40])
    clean, first, second = (
        FeatureBank(tower, table, CPU, tmp_path, view) for view in (None, View(0, how), View(1, how))
    )
    found = [bank.rows(rows) for bank in (clean, first, second)]
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    block = torch.from_numpy(table.images[:BLOCK])
    with torch.no_grad():
        expected = tower(augmented(block, tower.pixels, how, rng.generator(1, "view", 0))).float()
    assert torch.allclose(found[2][0], expected[3], atol=1e-5 if tower.dtype == torch.float32 else 0.05)
    assert FeatureBank(tower, table, CPU, tmp_path, View(1, Augmentation(0.5, flip=False))).folder != second.folder
    at_once = FeatureBank(tower, table, CPU, tmp_path / "b", View(0, how))
    at_once.fill(np.arange(len(table)))
    first.fill(np.arange(len(table))[::-1])
    assert contents(at_once) == contents(first), "whatever the order"


def test_a_row_is_the_same_bits_inside_autocast(tower, table, tmp_path):
    outside, inside = FeatureBank(tower, table, CPU, tmp_path / "a"), FeatureBank(tower, table, CPU, tmp_path / "b")
    outside.fill(np.arange(len(table)))
    with torch.autocast("cpu", torch.bfloat16):
        inside.fill(np.arange(len(table)))
    assert contents(inside) == contents(outside)


def test_another_number_of_threads_has_a_bank_of_its_own(tower, table, tmp_path):
    before = torch.get_num_threads()
    one = FeatureBank(tower, table, CPU, tmp_path).folder
    torch.set_num_threads(before + 1)
    try:
        assert FeatureBank(tower, table, CPU, tmp_path).folder != one
    finally:
        torch.set_num_threads(before)


def test_seconds_of_rows_are_those_of_their_blocks_whoever_computed_them(tower, table, tmp_path, monkeypatch):
    ticks = iter([0.0, 1.0, 10.0, 12.0, 100.0, 104.0])
    spent = FeatureBank.spent
    with monkeypatch.context() as patch:
        patch.setattr(features, "perf_counter", lambda: next(ticks))
        FeatureBank(tower, table, CPU, tmp_path).fill(np.array([0, BLOCK, 3 * BLOCK]))
    assert FeatureBank.spent - spent == 7.0
    again = FeatureBank(tower, table, CPU, tmp_path)
    assert again.seconds(np.array([1, 2, 3 * BLOCK])) == 5.0
    assert again.seconds(np.arange(len(table))) == 7.0, "a block that was never filled took nothing"
