"""Notes of requests: a finished run is found without preparing it, and only as long as nothing has changed."""

import os
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from clsim import cli, config, known, reads
from clsim.data import readers

pytestmark = pytest.mark.usefixtures("without_pictures")

DIGITS = ["--scenario", "split_digits", "scenario.train_per_class=2", "scenario.test_per_class=2"]
SMALL = ["--backbone", "vit_nano", "--device", "cpu"]


class Prepared(Exception):
    """The request was prepared, though its runs had a note; or as it should be."""


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A folder, a cache and records of the test's own; files may be new, as those of a test are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / "cache"))
    for module in ("clsim.known", "clsim.runner", "clsim.data.streams", "clsim.data.sources", "clsim.data.readers"):
        monkeypatch.setattr(f"{module}.READ", reads.READ.__class__() if module == "clsim.known" else known.READ)
    monkeypatch.setattr(known, "MARGIN", -1000.0)


@pytest.fixture
def run(monkeypatch, capsys):
    """`clsim run` with words -> what it prints; with `read`, it raises Prepared if no note answers."""

    def call(*words: str, read: bool = False) -> str:
        with monkeypatch.context() as patch:
            if read:
                patch.setattr(config, "plan", raise_prepared)
            capsys.readouterr()
            assert cli.main(["run", *words]) == 0
        return capsys.readouterr().out

    return call


def raise_prepared(*args):
    raise Prepared


@pytest.fixture
def images(tmp_path, write_parquet) -> Path:
    """A small data set in the place of CIFAR-100."""
    for split, seed in (("train", 0), ("test", 1)):
        pictures = list(np.random.default_rng(seed).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
        labels = [i % 4 for i in range(12)]
        file = tmp_path / "data" / "cifar100" / f"{split}.parquet"
        write_parquet(file, pictures, labels, image="img", label="fine_label")
    return tmp_path / "data"


def test_a_finished_run_is_found_and_shown_as_if_it_were_prepared(run, tmp_path):
    words = [*DIGITS, *SMALL, "--strategy", "ncm,linear", "epochs=1"]
    run(*words)
    answered = run(*words, read=True)
    for note in (tmp_path / "cache" / known.NOTES_FOLDER).iterdir():
        note.unlink()
    assert answered == run(*words)
    assert "average accuracy" in answered and answered.count("20 of them are used") == 2
    assert run(*words, "--quiet", read=True) == answered[answered.rindex("split_digits\n") :]


def other_cores(words, monkeypatch, tmp_path):
    monkeypatch.setattr("clsim.known.os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4})


def other_option(words, monkeypatch, tmp_path):
    words += ["--seed", "1"]


def other_variable(words, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", "elsewhere")


def other_folder(words, monkeypatch, tmp_path):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")


def other_module(words, monkeypatch, tmp_path):
    (tmp_path / "imported.py").write_text("1")


def new_module(words, monkeypatch, tmp_path):
    (tmp_path / "path" / "torch").mkdir()
    (tmp_path / "path" / "torch" / "__init__.py").touch()


def no_run(words, monkeypatch, tmp_path):
    next((tmp_path / "runs").rglob("summary.json")).unlink()


def changed_run(words, monkeypatch, tmp_path):
    next((tmp_path / "runs").rglob("matrix.json")).write_text("{}")


def changed_note(words, monkeypatch, tmp_path):
    (note,) = (tmp_path / "cache" / known.NOTES_FOLDER).iterdir()
    data = bytearray(note.read_bytes())
    data[len(data) // 2] ^= 1
    note.write_bytes(data)


def unsealed_note(words, monkeypatch, tmp_path):
    (note,) = (tmp_path / "cache" / known.NOTES_FOLDER).iterdir()
    note.write_bytes(zlib.compress(b'{"request": 1}'))


def cleared_cache(words, monkeypatch, tmp_path):
    assert cli.main(["cache", "--clear"]) == 0


def fresh(words, monkeypatch, tmp_path):
    words += ["--fresh"]


def dry_run(words, monkeypatch, tmp_path):
    words += ["--dry-run"]


CHANGES = [other_option, other_variable, other_folder, other_module, new_module, no_run, changed_run, changed_note]
CHANGES += [unsealed_note, cleared_cache, fresh, dry_run, other_cores]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_note_counts_only_if_nothing_has_changed(change, run, tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "path")
    module = ModuleType("imported")
    module.__file__ = str(tmp_path / "imported.py")
    monkeypatch.setitem(sys.modules, "imported", module)
    words = [*DIGITS, *SMALL, "--strategy", "ncm"]
    run(*words)
    run(*words, read=True)
    change(words, monkeypatch, tmp_path)
    with pytest.raises(Prepared):
        run(*words, read=True)


def changed_images(data):
    file = data / "cifar100" / "test.parquet"
    file.write_bytes(file.read_bytes())


def further_images(data):
    (data / "cifar100" / "test-2.parquet").touch()


def further_data(data):
    (data / "cifar-100-python").mkdir()


@pytest.mark.parametrize("change", [changed_images, further_images, further_data], ids=lambda change: change.__name__)
def test_images_are_compared_with_what_was_read(change, run, images):
    words = ["--scenario", "split_cifar100", "--data-dir", str(images), "scenario.classes_per_experience=2"]
    words += [*SMALL, "--strategy", "ncm"]
    run(*words)
    run(*words, read=True)
    change(images)
    with pytest.raises(Prepared):
        run(*words, read=True)


def test_another_file_with_the_same_size_and_times_is_seen(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    (tmp_path / "link").symlink_to("a")
    state = known._state([str(tmp_path / "link")])
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("b")
    assert known._state([str(tmp_path / "link")]) != state


def test_no_note_where_an_image_could_appear_in_a_place_that_is_searched_first(run, tmp_path, encode):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"{i}.png" for i in range(20)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encode(np.full((16, 16, 3), 10 * i, dtype=np.uint8)))
    (tmp_path / "list").mkdir()
    pq.write_table(pa.table({"image": names, "label": [i % 2 for i in range(20)]}), tmp_path / "list" / "all.parquet")
    words = ["--scenario", "folder", "--data-dir", "list/all.parquet", "scenario.classes_per_experience=2", *SMALL]
    run(*words, "--strategy", "ncm")
    with pytest.raises(Prepared):
        run(*words, "--strategy", "ncm", read=True)


def test_no_note_for_data_of_a_branch_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(tmp_path))
    (tmp_path / "test.parquet").touch()
    readers.parquet_files(None, "letters", "test", readers.Hub("someone/letters", "0" * 40))
    assert not known.READ.uncertain
    readers.parquet_files(None, "letters", "test", readers.Hub("someone/letters", "main"))
    assert known.READ.uncertain


def test_a_run_that_is_read_removes_what_killed_processes_left(run, tmp_path):
    words = [*DIGITS, *SMALL, "--strategy", "ncm"]
    run(*words)
    left = tmp_path / "cache" / "features" / "0.tmp-01234567"
    left.mkdir()
    run(*words, read=True)
    assert not left.exists()


def test_a_class_folder_that_was_empty_counts(run, tmp_path, encode):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for name in ("a", "b", "c/empty"):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
    for i, image in enumerate(images):
        (tmp_path / "tree" / ("train", "test")[i % 2] / ("a", "b")[i // 10] / f"{i}.png").write_bytes(encode(image))
        (tmp_path / "tree" / ("train", "test")[i % 2] / "c" / f"{i}.png").write_bytes(encode(image))
    words = ["--scenario", "folder", "--data-dir", "tree", "scenario.classes_per_experience=3", *SMALL]
    words += ["--strategy", "ncm"]
    run(*words)
    run(*words, read=True)
    (tmp_path / "tree" / "train" / "c" / "empty" / "0.png").write_bytes(encode(images[0]))
    with pytest.raises(Prepared):
        run(*words, read=True)


def test_a_file_of_weights_is_compared(run, tmp_path):
    from safetensors.torch import save_file

    from clsim.backbones.load import load_backbone

    weights = {name: tensor.clone() for name, tensor in load_backbone("vit_nano").image.vit.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    words = [*DIGITS, *SMALL, "--strategy", "ncm", "--weights", "w.safetensors"]
    run(*words)
    run(*words, read=True)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, tmp_path / "w.safetensors")
    with pytest.raises(Prepared):
        run(*words, read=True)


def test_what_is_not_certain_has_no_note(run, tmp_path, monkeypatch):
    words = [*DIGITS, *SMALL, "--strategy", "ncm"]
    notes = tmp_path / "cache" / known.NOTES_FOLDER

    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom clsim.strategies.ncm import Ncm\n\n"
        "@dataclass(kw_only=True)\nclass Mine(Ncm):\n    '''Mine.'''\n"
    )
    run(*DIGITS, *SMALL, "--strategy", "mine.py:Mine")
    assert not notes.exists(), "a plug-in of the user's own may read anything"

    with monkeypatch.context() as patch:
        patch.setattr(known, "ACCELERATORS", ("null",))
        run(*words)
        assert notes.exists(), "--device cpu needs none"
        run(*words[: words.index("--device")], *words[words.index("--device") + 2 :])
    assert len(list(notes.iterdir())) == 1, "auto may choose another device, where there is one"

    with monkeypatch.context() as patch:
        patch.setattr(known, "MARGIN", 5.0)
        (tmp_path / "settings.toml").write_text("seed = 0")
        module = ModuleType("imported")
        module.__file__ = str(tmp_path / "settings.toml")
        patch.setitem(sys.modules, "imported", module)
        run(*words, "--seed", "2")
    assert len(list(notes.iterdir())) == 1, "a file was changed just before: it may have been read before that"

    monkeypatch.setattr("clsim.runner.READ", reads.Reads())
    run(*words, "--seed", "3")
    assert len(list(notes.iterdir())) == 1, "the run was prepared elsewhere"


def test_the_oldest_notes_are_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(known, "NOTES", 2)
    for seed in range(4):
        run(*DIGITS, *SMALL, "--strategy", "ncm", "--seed", str(seed))
    assert len(list((tmp_path / "cache" / known.NOTES_FOLDER).iterdir())) == 2
    run(*DIGITS, *SMALL, "--strategy", "ncm", "--seed", "3", read=True)
