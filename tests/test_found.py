"""What a run found is printed before it trains and kept in its directory: folders, arrays, cached tables, bad files."""

import json

import numpy as np
import pytest

from clsim import runner
from clsim.data import found
from clsim.data.streams import Scenario, class_incremental
from clsim.data.table import ImageTable

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def tree(tmp_path, encode):
    """Train/ and Test/ of three classes, with a file that is in no class and one that is no image."""
    draw = np.random.default_rng(0)
    for split, count in (("Train", 5), ("Test", 4)):
        for name in ("ant", "bee", "cow"):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(encode(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
    (tmp_path / "tree" / "Train" / "lost.png").write_bytes(encode(np.zeros((8, 8), np.uint8)))
    return tmp_path / "tree"


@pytest.fixture
def shown(plan, tmp_path, capsys):
    """Runs on a tree and returns what was printed, and the finished runs."""

    def show(tree, *strategies, quiet=False, dry_run=False, fresh=False, **fields):
        scenario = {"classes_per_experience": 1} | fields
        asked = [plan(name, tmp_path / "runs", scenario, on="folder", data_dir=tree, epochs=1) for name in strategies]
        runs = runner.run_all(asked, quiet=quiet, dry_run=dry_run, fresh=fresh)
        return capsys.readouterr().out, runs

    return show


def test_a_tree_says_its_classes_its_splits_and_what_was_left_out(tree, shown):
    out, (run, _) = shown(tree, "ncm", "linear")
    assert out.startswith("folder: 3 classes: ant, bee, cow\n")
    assert "training images (split 'Train'): 15 of 8 x 8 pixels, 5 a class\n" in out
    assert "test images (split 'Test'): 12 of 8 x 8 pixels, 4 a class\n" in out
    assert "left out, images in no class folder: 1 (" in out and "lost.png)" in out
    assert out.count("3 classes") == 1, "once for both strategies"
    assert out.index("3 classes") < out.index("after experience")
    train, test = json.loads((run.directory / "env.json").read_text())["found"]
    assert (train["part"], train["split"], train["images"], train["used"]) == ("training", "Train", 15, 15)
    assert train["classes"] == {"ant": 5, "bee": 5, "cow": 5} and test["classes"]["bee"] == 4
    assert train["sizes"] == [[8, 8], [8, 8]]
    assert train["left_out"]["images in no class folder"]["count"] == 1
    again, _ = shown(tree, "ncm", fresh=True, train_per_class=2)
    assert "lost.png" in again, "also if the table comes from the cache"
    assert "5 a class; 6 of them are used" in again


def test_a_dry_run_says_it_too_and_quiet_silences_it(tree, shown):
    out, _ = shown(tree, "ncm", dry_run=True)
    assert out.startswith("folder: 3 classes: ant, bee, cow\n") and "lost.png" in out
    assert shown(tree, "ncm", quiet=True)[0] == ""
    assert "classes: ant" not in shown(tree, "ncm", dry_run=True, quiet=True)[0]


def test_bad_images_that_are_skipped_are_counted(tree, shown):
    (tree / "Train" / "bee" / "0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for _ in range(2):  # the second time from the cache
        out, (run,) = shown(tree, "ncm", on_bad_image="skip", fresh=True)
        assert "training images (split 'Train'): 14 of 8 x 8 pixels, 4 to 5 a class\n" in out
        assert "cannot be decoded: 1 image left out (bee 1): " in out and "bee/0.png" in out
        assert "1 image left out" in json.loads((run.directory / "env.json").read_text())["found"][0]["skipped"]


def test_a_tree_without_splits_says_how_it_was_cut(tmp_path, encode, shown):
    for c in range(2):
        for i in range(40):
            file = tmp_path / "whole" / f"c{c}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(np.full((8, 8), 20 * c + i, np.uint8)))
    out, _ = shown(tmp_path / "whole", "ncm", dry_run=True)
    assert "train (80 %)" in out and "a fifth of the images is for testing" in out


def test_a_pair_counts_the_images_it_uses_and_keeps_the_targets_labels(plan, tmp_path, capsys):
    for name in ("linear", "mcc"):
        runner.run_all([plan(name, tmp_path, {"protocol": "pair"})], dry_run=True)
    out = capsys.readouterr().out
    # six classes of six pictures in three domains; the pair uses two of them
    assert "training and test images: 108 of 8 x 8 pixels, 18 a class; 72 of them are used\n" in out
    assert "3 domains: day 36, fog 36, night 36\n" in out
    assert "no unlabelled target" not in out


@pytest.mark.parametrize(("strategy", "told"), [("mcc", True), ("dann", True), ("dapl", True), ("source_only", False)])
def test_a_method_that_adapts_says_so_where_it_has_no_target(strategy, told, plan, tmp_path, capsys):
    (run,) = runner.run_all([plan(strategy, tmp_path, epochs=1)])
    line = "this stream has no unlabelled target to adapt to, so it learns from labelled images alone"
    assert (f"{strategy}: {line}\n" in capsys.readouterr().out) == told
    assert (line in run.summary["notes"].values()) == told


def test_many_classes_are_counted_and_the_first_are_named():
    names = tuple(f"class number {i}" for i in range(200))
    images = np.zeros((200, 3, 8, 8), np.uint8)
    table = ImageTable.from_arrays(images, np.arange(200), names)
    records = found.record(class_incremental(Scenario(), table, table, 20), {})
    first, second = found.lines(records)
    assert first.startswith("200 classes: class number 0, class number 1,") and first.endswith(" more")
    named = first.count(",") + 1
    assert first.endswith(f"and {200 - named} more") and len(first) < 130
    assert second == "training and test images: 200 of 8 x 8 pixels, 1 a class"


def test_one_class_and_images_of_several_sizes():
    class Whole:
        sizes = np.array([[8, 12], [8, 8], [30, 8]])
        shape = (3, 3, 8, 8)

    table = ImageTable(Whole(), np.zeros(3, np.int64), ("ant",), "0")
    text = found.lines(found.record(class_incremental(Scenario(), table, table, 1), {}))
    assert text == ["1 class: ant", "training and test images: 3 of 8 x 8 to 30 x 8 pixels, 3 a class"]
