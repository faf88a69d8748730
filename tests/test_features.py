"""The feature bank: the same bits whoever fills it, whenever and in whatever order."""

import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from damage import DAMAGE, flip

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


def test_two_that_need_the_same_rows_share_the_work_and_compute_no_block_twice(tower, table, tmp_path, monkeypatch):
    filled, here, spent = [], threading.local(), FeatureBank.spent
    fill_block = FeatureBank._fill_block

    def slow(bank, block):
        filled.append((here.name, block))
        time.sleep(0.1)
        fill_block(bank, block)

    def work(name):
        torch.set_num_threads(1)
        here.name, bank = name, FeatureBank(tower, table, CPU, tmp_path)
        both.wait()
        return bank.rows(np.arange(len(table)))

    monkeypatch.setattr(FeatureBank, "_fill_block", slow)
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, "ab")
    assert sorted(block for _, block in filled) == [0, 1, 2, 3] and {name for name, _ in filled} == {"a", "b"}
    assert torch.equal(first, second)
    # whoever waits for a block waits for the bank, which is no cost of its run
    assert FeatureBank.spent - spent > float(FeatureBank(tower, table, CPU, tmp_path).seconds(np.arange(len(table))))


def test_where_locks_fail_nothing_waits(tower, table, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(bank_files.fcntl, "fcntl", fail)
    bank = FeatureBank(tower, table, CPU, tmp_path)
    bank.fill(np.arange(len(table)))
    assert set(contents(bank)[1]) == {1}


def test_another_tower_pixels_table_or_arithmetic_has_another_bank(tower, table, make_table, tmp_path, monkeypatch):
    folder = FeatureBank(tower, table, CPU, tmp_path).folder
    assert FeatureBank(tower, table, CPU, tmp_path).folder == folder
    assert FeatureBank(tower, make_table(seed=1), CPU, tmp_path).folder != folder
    changed = load_backbone("vit_nano").image.to(tower.dtype)
    changed.vit.norm.bias[0] += 1
    assert FeatureBank(changed, table, CPU, tmp_path).folder != folder
    monkeypatch.setattr(features, "ARITHMETIC", features.ARITHMETIC + 1)
    assert FeatureBank(tower, table, CPU, tmp_path).folder != folder, "other code may compute other last bits"


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


# broken banks, leftovers and other users


@pytest.fixture(scope="module")
def plain():
    return load_backbone("vit_nano").image


@pytest.mark.parametrize("name", ["bank.json", "features", "blocks", "filled"])
@pytest.mark.parametrize("damage", [each for each in DAMAGE if each != "middle byte"])
def test_a_broken_bank_gives_the_same_features(plain, table, tmp_path, capsys, name, damage):
    every = np.arange(len(table))
    bank = FeatureBank(plain, table, CPU, tmp_path)
    expected, whole = bank.rows(every), contents(bank)
    DAMAGE[damage](bank.folder / name)
    again = FeatureBank(plain, table, CPU, tmp_path)
    assert torch.equal(again.rows(every), expected) and contents(again) == whole
    assert again.seconds(every) > 0
    said = capsys.readouterr().err
    if name == "filled" and damage in ("zeros", "first byte", "last byte"):
        assert said.count("\n") <= 1, "blocks that seem empty are computed again, which is not worth a line"
    else:
        assert said.count("\n") == 1 and str(bank.folder) in said and "again" in said
    assert bank_files.faults(bank.folder, whole=True) == []
    FeatureBank(plain, table, CPU, tmp_path).rows(every)
    assert capsys.readouterr().err == ""


def test_the_files_of_another_bank_are_not_taken(plain, table, make_table, tmp_path):
    every = np.arange(len(table))
    bank = FeatureBank(plain, table, CPU, tmp_path)
    other = FeatureBank(plain, make_table(num_classes=5, per_class=21, seed=1), CPU, tmp_path)
    expected, _ = bank.rows(every), other.fill(every)
    for names in (("features",), ("blocks",), ("features", "blocks", "filled"), ("features", "blocks", "bank.json")):
        for name in names:
            shutil.copyfile(other.folder / name, bank.folder / name)
        assert torch.equal(FeatureBank(plain, table, CPU, tmp_path).rows(every), expected), names


def test_a_full_check_finds_blocks_that_nobody_has_read(plain, table, tmp_path):
    bank = FeatureBank(plain, table, CPU, tmp_path)
    bank.fill(np.array([0, BLOCK]))
    assert bank_files.faults(bank.folder, whole=True) == []
    flip(bank.folder / "features", 10)
    assert bank_files.faults(bank.folder) == []
    assert bank_files.faults(bank.folder, whole=True) == ["1 blocks were changed"]


def test_a_full_check_finds_flags_and_descriptions_that_no_run_wrote(plain, table, make_table, tmp_path):
    every = np.arange(len(table))
    bank = FeatureBank(plain, table, CPU, tmp_path)
    other = FeatureBank(plain, make_table(num_classes=4, per_class=21, seed=1), CPU, tmp_path)
    bank.fill(every)
    flags = (bank.folder / "filled").read_bytes()
    (bank.folder / "filled").write_bytes(b"\x05" + flags[1:])
    assert bank_files.faults(bank.folder, whole=True) == ["filled has flags that no run writes"]
    (bank.folder / "filled").write_bytes(b"\x00" + flags[1:])  # this block is computed again
    assert bank_files.faults(bank.folder, whole=True) == []
    shutil.copyfile(other.folder / "bank.json", bank.folder / "bank.json")
    assert bank_files.faults(bank.folder) == ["bank.json is of another bank"]


def test_a_block_is_checked_once_in_a_process(plain, table, tmp_path, monkeypatch):
    FeatureBank(plain, table, CPU, tmp_path).fill(np.arange(len(table)))
    checked = []
    real = bank_files._checksum
    monkeypatch.setattr(bank_files, "_checksum", lambda *parts: checked.append(parts[1]) or real(*parts))
    bank = FeatureBank(plain, table, CPU, tmp_path)
    for _ in range(3):
        bank.rows(np.array([3, 2 * BLOCK]))
    assert checked == [0, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from clsim.backbones.bank_files import BankFiles
*_, folder, table, rows, width, dtype, block = sys.argv
with BankFiles(Path(folder), table, int(rows), int(width), dtype, int(block)).alone(1, wait=True) as alone:
    assert alone
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_keeps_no_block_locked(plain, table, tmp_path):
    bank = FeatureBank(plain, table, CPU, tmp_path)
    about = [bank.folder, table.fingerprint, len(table), plain.out_dim, "float32", BLOCK]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, about)], check=False)
    assert killed.returncode == -signal.SIGKILL
    bank.fill(np.arange(len(table)))
    assert set(contents(bank)[1]) == {1}


def test_a_bank_in_use_outlives_the_cache(plain, table, tmp_path):
    every = np.arange(len(table))
    expected = FeatureBank(plain, table, CPU, tmp_path / "own").rows(every)
    bank = FeatureBank(plain, table, CPU, tmp_path / "cleared")
    bank.rows(np.array([0]))
    shutil.rmtree(tmp_path / "cleared")
    assert torch.equal(bank.rows(every), expected) and bank.seconds(every) > 0


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775)])
def test_banks_follow_the_umask(plain, table, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = FeatureBank(plain, table, CPU, tmp_path / "cache").folder
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [mode, mode]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode & 0o666}


def test_what_killed_processes_left_is_removed(plain, table, tmp_path):
    left = tmp_path / "features" / "0123456789abcdef01234567.tmp-0123abcd"
    left.mkdir(parents=True)
    (left / "features").write_bytes(b"half of them")
    FeatureBank(plain, table, CPU, tmp_path)
    assert not left.exists()


def test_a_bank_of_another_user_that_may_only_be_read(plain, table, tmp_path, monkeypatch):
    every = np.arange(len(table))
    bank = FeatureBank(plain, table, CPU, tmp_path)
    expected = bank.rows(every)
    # not read-only files: the superuser, who may run the tests, writes into them
    monkeypatch.setattr(bank_files.os, "access", lambda *args: False)
    reader = FeatureBank(plain, table, CPU, tmp_path)
    assert torch.equal(reader.rows(every), expected)
    flip(bank.folder / "features", 0)
    with pytest.raises(PermissionError, match=f"CLSIM_CACHE_DIR names another cache.*{bank.folder}"):
        FeatureBank(plain, table, CPU, tmp_path).rows(every)


def test_on_a_gpu_blocks_grow_with_its_memory_and_not_beyond_the_table(monkeypatch, make_table):
    tower, gpu = load_backbone("vit_nano").image, torch.device("cuda")
    large, small = make_table(num_classes=5, per_class=300), make_table(num_classes=5, per_class=21)
    one = 16 * 3 * 16**2 + 16 * 17 * 32 * 4  # bytes of one image of 16 x 16 pixels, and of 17 tokens of width 32
    sizes = {}
    for room in (1, 64, 255, 256, 10**6):
        monkeypatch.setattr(features, "memory_of", lambda device, room=room: 8 * room * one)
        sizes[room] = features.block_rows(tower, large, gpu), features.block_rows(tower, small, gpu)
    assert sizes == {1: (32, 32), 64: (64, 64), 255: (128, 128), 256: (256, 128), 10**6: (1024, 128)}
    assert features.block_rows(tower, large, CPU) == BLOCK
