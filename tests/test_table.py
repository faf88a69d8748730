"""ImageTable: the order of rows, the cache, sizes, and images that cannot be decoded."""

import dataclasses
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from damage import DAMAGE, flip
from PIL import Image

import clsim
from clsim import checkpoint
from clsim.data import entries
from clsim.data import table as table_module
from clsim.data.encoded import EncodedImages
from clsim.data.folders import read_folder
from clsim.data.readers import Source, read_parquet
from clsim.data.table import ImageTable
from clsim.data.whole import WholeImages
from clsim.errors import RequestError, RunFailed


def pictures(count, height=6, width=6, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def source_of(images, labels, encode, fingerprint="print", domains=None):
    data = [image if isinstance(image, bytes) else encode(image) for image in images]
    return Source(
        read=lambda i: data[i],
        names=[f"{i}.png" for i in range(len(data))],
        labels=np.array(labels),
        class_names=tuple(str(i) for i in range(max(labels) + 1)),
        fingerprint=fingerprint,
        domains=None if domains is None else np.array(domains),
        domain_names=() if domains is None else tuple(f"domain {i}" for i in range(max(domains) + 1)),
    )


def entry(cache_dir):
    """The folder of the only table in the cache."""
    (folder,) = (path.parent for path in (cache_dir / "tables").glob("*/entry.json") if ".broken" not in str(path))
    return folder


def leftovers(cache_dir):
    """What lies in the cache and is not a finished table."""
    return [path for path in (cache_dir / "tables").iterdir() if not (path / "entry.json").exists()]


def test_rows_stand_by_class_and_pictures_are_unchanged(tmp_path, encode):
    images, labels = pictures(20), [i % 3 for i in range(20)]
    table = ImageTable.decode(source_of(images, labels, encode), 32, tmp_path)
    assert table.images.shape == (20, 3, 6, 6)
    assert table.images.dtype == np.uint8
    assert table.labels.tolist() == sorted(labels)
    assert table.class_names == ("0", "1", "2")
    assert (len(table), table.skipped.count, table.domains) == (20, 0, None)
    stored = [image.tobytes() for image in table.images]
    for label in range(3):
        expected = {np.moveaxis(images[i], 2, 0).tobytes() for i in range(20) if labels[i] == label}
        assert {stored[row] for row in np.flatnonzero(table.labels == label)} == expected


def test_within_a_class_rows_are_shuffled_in_a_fixed_way(tmp_path, encode):
    images = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(30)]
    first = ImageTable.decode(source_of(images, [0] * 30, encode), 32, tmp_path / "a")
    again = ImageTable.decode(source_of(images, [0] * 30, encode), 32, tmp_path / "b")
    order = first.images[:, 0, 0, 0].tolist()
    assert order != sorted(order) == list(range(30))
    assert again.images[:, 0, 0, 0].tolist() == order


def test_domains_come_before_classes(tmp_path, encode):
    source = source_of(pictures(8), [0, 1] * 4, encode, domains=[0, 0, 1, 1] * 2)
    table = ImageTable.decode(source, 32, tmp_path)
    assert table.domains.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table.labels.tolist() == [0, 0, 1, 1] * 2
    assert table.domain_names == ("domain 0", "domain 1")


def test_arrays_make_the_same_table_as_files(tmp_path, encode):
    images, labels = pictures(9), [2, 1, 0] * 3
    decoded = ImageTable.decode(source_of(images, labels, encode), 32, tmp_path)
    given = ImageTable.from_arrays(np.stack(images).transpose(0, 3, 1, 2), np.array(labels), ("0", "1", "2"))
    assert (given.images == decoded.images).all()
    assert (given.labels == decoded.labels).all()


def test_the_second_time_nothing_is_decoded(tmp_path, encode, monkeypatch):
    source = source_of(pictures(5), [0, 1, 0, 1, 0], encode)
    first = ImageTable.decode(source, 32, tmp_path)
    monkeypatch.setattr(table_module, "_decode_into", None)
    second = ImageTable.decode(source, 32, tmp_path)
    assert second.fingerprint == first.fingerprint
    assert (second.images == first.images).all()
    assert (second.labels == first.labels).all()


def test_grey_and_palette_images_become_rgb(tmp_path, encode):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    stream = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, axis=2)).convert("P").save(stream, "PNG")
    table = ImageTable.decode(source_of([grey, stream.getvalue()], [0, 1], encode), 32, tmp_path)
    assert (table.images[0] == grey).all()
    assert table.images.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(6, 6), (6, 6)], 8, (6, 6)),  # uniform and small: as it is
        ([(8, 5), (8, 5)], 8, (8, 5)),
        ([(6, 6), (7, 7)], 8, (8, 8)),
        ([(4, 7), (6, 3)], 8, (8, 8)),  # mixed: a square, whatever the shapes
        ([(6, 6), (20, 10)], 8, (8, 8)),  # one is larger: cut to side
        ([(20, 10), (20, 10)], 8, (8, 8)),
    ],
)
def test_sizes(tmp_path, encode, sizes, side, expected):
    images = [pictures(1, height, width)[0] for height, width in sizes]
    table = ImageTable.decode(source_of(images, [0, 1], encode), side, tmp_path)
    assert table.images.shape == (2, 3, *expected)


def test_of_larger_images_evaluation_sees_the_centre_and_training_the_whole(tmp_path, encode):
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200  # the middle third
    table = ImageTable.decode(source_of([wide], [0], encode), 8, tmp_path)
    assert (table.pixels(np.array([0]))[0, :, :, 2:-2] == 200).all()
    (whole,) = table.whole(np.array([0]))
    assert whole.shape == (3, 8, 24) and (whole[..., 10:14] == 200).all()
    assert (whole[..., :6] == 0).all() and (whole[..., -6:] == 0).all()


# as clsim had them before it stored whole images
@pytest.mark.parametrize(("size", "side"), [((6, 6), 32), ((24, 40), 64), ((64, 64), 32)])
def test_tables_of_one_size_keep_their_fingerprints(tmp_path, encode, size, side):
    images = [np.full((*size, 3), i, dtype=np.uint8) for i in range(4)]
    table = ImageTable.decode(source_of(images, [0, 1, 0, 1], encode), side, tmp_path)
    assert table.fingerprint == f"3a32eed7562148b3d35cc281ef9e6d53-{side}-stop"
    assert entry(tmp_path).name != table.fingerprint, "tables of older versions are not opened"


def test_tables_of_whole_images_have_new_fingerprints(tmp_path, encode):
    images = [np.full((6, 9, 3), i, dtype=np.uint8) for i in range(4)]
    table = ImageTable.decode(source_of(images, [0, 1, 0, 1], encode), 4, tmp_path)
    assert table.fingerprint == entry(tmp_path).name != "3a32eed7562148b3d35cc281ef9e6d53-4-stop"


def test_a_bad_image_names_itself(tmp_path, encode):
    images = pictures(4)
    images[2] = b"not a picture"
    with pytest.raises(RequestError, match=r"cannot decode image 2\.png .*on_bad_image=skip leaves it out"):
        ImageTable.decode(source_of(images, [0, 1, 0, 1], encode), 32, tmp_path)
    assert list((tmp_path / "tables").iterdir()) == []


def test_bad_images_can_be_left_out_and_are_counted(tmp_path, encode):
    images, labels = pictures(8), [0, 1, 2, 0, 1, 1, 1, 2]
    assert not ImageTable.decode(source_of(images, labels, encode, "whole"), 32, tmp_path, "skip").skipped
    images[1] = b"not a picture"
    images[4] = encode(images[4])[:-30]  # its header is whole, its pixels are not
    images[7] = b"version https://git-lfs.github.com/spec/v1"
    for _ in range(2):  # the second time from the cache
        table = ImageTable.decode(source_of(images, labels, encode), 32, tmp_path, on_bad_image="skip")
        assert table.labels.tolist() == [0, 0, 1, 1, 2]
        assert table.images.shape == (5, 3, 6, 6)
        assert (table.images[4] == np.moveaxis(images[2], 2, 0)).all()
        assert table.skipped and table.skipped.count == 3 and table.skipped.by_class == {"1": 2, "2": 1}
        assert table.skipped.first[0] == "1.png (not an image of a known format)"
        assert [text.split()[0] for text in table.skipped.first] == ["1.png", "4.png", "7.png"]
        assert str(table.skipped).startswith("3 images left out (1 2, 2 1): 1.png (not an image of a known format), 4")


def test_only_the_first_bad_images_are_named(tmp_path, encode):
    images = [*pictures(9), *[b"no"] * 9]
    skipped = ImageTable.decode(source_of(images, [0] * 18, encode), 32, tmp_path, on_bad_image="skip").skipped
    assert skipped.count == 9 and len(skipped.first) == 5
    assert str(skipped).endswith("13.png (not an image of a known format), ...")


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
def test_a_class_must_keep_half_of_its_images(tmp_path, encode, monkeypatch, limit):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    half = source_of([*pictures(6), pointer, pointer], [0, 0, 0, 0, 1, 1, 1, 1], encode, "half")
    assert ImageTable.decode(half, 32, tmp_path, on_bad_image="skip").skipped.by_class == {"1": 2}
    images = [*pictures(5), pointer, pointer, encode(pictures(1)[0])[:-30]]
    with pytest.raises(
        RequestError, match=r"3 of 4 images of class '1' cannot be decoded, e\.g\. 5\.png \(it is a git-lfs"
    ):
        ImageTable.decode(source_of(images, [0, 0, 0, 0, 1, 1, 1, 1], encode), 32, tmp_path, on_bad_image="skip")
    assert leftovers(tmp_path) == []


def test_nothing_but_bad_images(tmp_path, encode):
    with pytest.raises(RequestError, match="none of the images can be decoded"):
        ImageTable.decode(source_of([b"", b"x"], [0, 1], encode), 32, tmp_path, on_bad_image="skip")
    broken = encode(pictures(1)[0])[:-30]
    with pytest.raises(RequestError, match="none of the images can be decoded"):
        ImageTable.decode(source_of([broken], [0], encode), 32, tmp_path, on_bad_image="skip")


def test_an_interrupted_decode_leaves_no_table(tmp_path, encode, monkeypatch):
    source, decode = source_of(pictures(5), [0] * 5, encode), table_module.decoded
    decoded = []

    def interrupted(*arguments):
        if len(decoded) == 3:
            raise KeyboardInterrupt
        decoded.append(decode(*arguments))
        return decoded[-1]

    monkeypatch.setattr(table_module, "decoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ImageTable.decode(source, 32, tmp_path)
    assert list((tmp_path / "tables").iterdir()) == []
    monkeypatch.setattr(table_module, "decoded", decode)
    assert len(ImageTable.decode(source, 32, tmp_path)) == 5


def test_a_full_disk_leaves_no_table(tmp_path, encode, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    source = source_of(pictures(5), [0] * 5, encode)
    monkeypatch.setattr(table_module.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        ImageTable.decode(source, 32, tmp_path)
    assert list((tmp_path / "tables").iterdir()) == []


def test_the_slower_of_two_takes_the_fasters_table(tmp_path, encode, monkeypatch):
    source, write = source_of(pictures(5), [0, 1, 0, 1, 0], encode), table_module._write_images

    def overtaken(*arguments):
        monkeypatch.setattr(table_module, "_write_images", write)
        ImageTable.decode(source, 32, tmp_path)  # another process, from beginning to end
        return write(*arguments)

    monkeypatch.setattr(table_module, "_write_images", overtaken)
    table = ImageTable.decode(source, 32, tmp_path)
    assert len(table) == 5
    assert leftovers(tmp_path) == []
    assert len(list((tmp_path / "tables").iterdir())) == 1


RACER = """
import sys
from pathlib import Path
from clsim.data.readers import read_parquet
from clsim.data.table import ImageTable
source = read_parquet([Path(sys.argv[1])], "image", "label")
print("ready", flush=True)
sys.stdin.readline()
table = ImageTable.decode(source, 32, Path(sys.argv[2]))
print(table.fingerprint, int(table.images.sum()), len(table))
"""


def raced(command, count):
    """What `count` processes write that begin at the same moment."""
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    return [racer.communicate(timeout=60)[0] for racer in racers]


def test_two_processes_race(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "train.parquet", pictures(300, 24, 24), [i % 7 for i in range(300)])
    said = raced([sys.executable, "-c", RACER, str(file), str(tmp_path)], 2)
    table = ImageTable.decode(read_parquet([file], "image", "label"), 32, tmp_path)
    assert said == [f"{table.fingerprint} {int(table.images.sum())} 300\n"] * 2
    assert leftovers(tmp_path) == []


# two readings of one tree


def changed(source, **fields):
    return dataclasses.replace(source, **fields)


def test_other_labels_domains_or_names_are_another_table(tmp_path, encode):
    source = source_of(pictures(4), [0, 1, 0, 1], encode, domains=[0, 0, 1, 1])
    readings = [
        source,
        changed(source, labels=np.array([1, 0, 1, 0])),
        changed(source, domains=np.array([1, 1, 0, 0])),
        changed(source, domains=None, domain_names=()),
        changed(source, class_names=("1", "0")),
        changed(source, class_names=("0", "1", "empty")),
        changed(source, domain_names=("day", "night")),
    ]
    for _ in range(2):
        tables = [ImageTable.decode(each, 32, tmp_path) for each in readings]
        assert len({table.fingerprint for table in tables}) == len(readings)
        for table, reading in zip(tables, readings, strict=True):
            assert sorted(table.labels) == sorted(reading.labels)
            assert (table.class_names, table.domain_names) == (reading.class_names, reading.domain_names)
            assert (table.domains is None) == (reading.domains is None)


def test_one_tree_is_read_as_domains_and_then_by_class(tmp_path, domain_tree):
    by_domain = ImageTable.decode(read_folder(domain_tree, ("day", "night")), 32, tmp_path)
    by_class = ImageTable.decode(read_folder(domain_tree), 32, tmp_path)
    assert by_domain.class_names == ("circle", "square", "star") and np.bincount(by_domain.labels).tolist() == [30] * 3
    assert by_class.class_names == ("day", "night") and np.bincount(by_class.labels).tolist() == [45] * 2


def test_an_empty_class_folder_that_comes_or_goes_is_noticed(tmp_path, encode):
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    for name in ("apple", "pear"):
        (tree / name).mkdir(parents=True)
        for i, picture in enumerate(pictures(3)):
            (tree / name / f"{i}.png").write_bytes(encode(picture))
    assert ImageTable.decode(read_folder(tree), 32, cache).class_names == ("apple", "pear")
    (tree / "fig").mkdir()
    with_fig = read_folder(tree)
    table = ImageTable.decode(with_fig, 32, cache)
    assert table.class_names == with_fig.class_names and table.labels.max() == max(with_fig.labels)
    (tree / "fig").rmdir()
    table = ImageTable.decode(read_folder(tree), 32, cache)
    assert table.class_names == ("apple", "pear") and table.labels.tolist() == [0, 0, 0, 1, 1, 1]


# broken entries, leftovers and other users


FILES = {
    "decoded": ["entry.json", "images.npy", "labels.npy", "domains.npy"],
    "whole": ["entry.json", "images.npy", "sizes.npy", "labels.npy", "domains.npy"],
    "encoded": ["entry.json", "images.bin", "spans.npy", "names.txt", "labels.npy", "domains.npy"],
    "whole encoded": ["entry.json", "images.bin", "spans.npy", "sizes.npy", "names.txt", "labels.npy", "domains.npy"],
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_table_is_set_aside_and_made_again(tmp_path, encode, monkeypatch, capsys, form, damage):
    if "encoded" in form:
        monkeypatch.setattr(table_module, "LARGEST_DECODED", 100)
    images = pictures(4) + pictures(4, 6, 9 if "whole" in form else 6)
    source = source_of(images, [0, 1] * 4, encode, domains=[0, 0, 1, 1] * 2)
    first = ImageTable.decode(source, 32, tmp_path)
    folder = entry(tmp_path)
    expected = first.pixels(np.arange(8)).copy()
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES[form])
    for name in FILES[form]:
        DAMAGE[damage](folder / name)
        table = ImageTable.decode(source, 32, tmp_path)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{folder} was broken (" in said and name in said
        assert (table.pixels(np.arange(8)) == expected).all() and table.fingerprint == first.fingerprint
        assert table.labels.tolist() == first.labels.tolist() and table.domains.tolist() == first.domains.tolist()
        assert leftovers(tmp_path) in ([], [folder.with_name(f"{folder.name}.broken")])
        assert folder.with_name(f"{folder.name}.broken").is_dir()
    ImageTable.decode(source, 32, tmp_path)
    assert capsys.readouterr().err == "", "whole tables are opened without a word"


def test_an_entry_that_is_empty_or_a_file_is_set_aside(tmp_path, encode, capsys):
    source = source_of(pictures(4), [0, 1] * 2, encode)
    ImageTable.decode(source, 32, tmp_path)
    folder = entry(tmp_path)
    for make in (folder.mkdir, folder.touch, folder.mkdir, folder.touch):
        shutil.rmtree(folder)
        make()
        assert len(ImageTable.decode(source, 32, tmp_path)) == 4
        assert capsys.readouterr().err.count("is made again") == 1


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
def test_a_table_in_use_outlives_its_entry(tmp_path, encode, monkeypatch, limit):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    images = pictures(4)
    table = ImageTable.decode(source_of(images, [0] * 4, encode), 32, tmp_path)
    shutil.rmtree(tmp_path / "tables")
    stored = {image.tobytes() for image in table.pixels(np.arange(4))}
    assert stored == {np.moveaxis(image, 2, 0).tobytes() for image in images}


def test_processes_that_find_one_broken_table_all_get_a_whole_one(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "train.parquet", pictures(300, 24, 24), [i % 7 for i in range(300)])
    table = ImageTable.decode(read_parquet([file], "image", "label"), 32, tmp_path)
    folder = entry(tmp_path)
    flip(folder / "labels.npy", -1)
    expected = f"{table.fingerprint} {int(table.images.sum())} 300\n"
    assert raced([sys.executable, "-c", RACER, str(file), str(tmp_path)], 3) == [expected] * 3
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert names == [folder.name, f"{folder.name}.broken"]


def test_a_change_in_the_middle_of_a_large_file_is_found_by_a_full_check(tmp_path, encode, monkeypatch):
    monkeypatch.setattr(entries, "QUICK", 200)
    source = source_of(pictures(40), [0] * 40, encode)
    ImageTable.decode(source, 32, tmp_path)
    folder = entry(tmp_path)
    assert entries.faults(folder, whole=True) == []
    flip(folder / "images.npy", 2000)
    assert entries.faults(folder) == []
    assert entries.faults(folder, whole=True) == ["the bytes of images.npy were changed"]
    flip(folder / "labels.npy", 250)
    assert entries.faults(folder) == ["the bytes of labels.npy were changed"], "small files are always checked whole"


KILLED = """
import sys, time
from pathlib import Path
from clsim.data import table
from clsim.data.readers import read_parquet
def slow(*arguments):
    print("decoding", flush=True)
    time.sleep(60)
table.decoded = slow
table.ImageTable.decode(read_parquet([Path(sys.argv[1])], "image", "label"), 32, Path(sys.argv[2]))
"""


def test_what_a_killed_process_left_is_removed_and_what_another_makes_is_not(tmp_path, write_parquet, encode):
    file = write_parquet(tmp_path / "train.parquet", pictures(4), [0, 1, 0, 1])
    maker = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert maker.stdout.readline() == b"decoding\n"
        (making,) = leftovers(tmp_path)
        ImageTable.decode(source_of(pictures(4), [0, 1, 0, 1], encode), 32, tmp_path)
        assert leftovers(tmp_path) == [making], "the other process is at work"
    finally:
        maker.kill()
        maker.communicate()
    assert leftovers(tmp_path) == [making]
    ImageTable.decode(source_of(pictures(4), [0, 1, 0, 1], encode), 32, tmp_path)
    assert leftovers(tmp_path) == [], "even if the table itself is in the cache"


INTERRUPTED = """
import sys, time
from pathlib import Path
from clsim import cli
from clsim.data import table
from clsim.data.readers import read_parquet
decoded = table.decoded
def slow(*arguments):
    print("decoding", flush=True)
    time.sleep(0.1)
    return decoded(*arguments)
table.decoded = slow
cli._dispatch = lambda argv: table.ImageTable.decode(read_parquet([Path(argv[0])], "image", "label"), 32, Path(argv[1]))
sys.exit(cli.main())
"""


def test_ctrl_c_stops_the_making_of_a_table_at_once(tmp_path, write_parquet):
    count = 300 * (os.cpu_count() or 1)  # so that the rest would take 30 s
    file = write_parquet(tmp_path / "train.parquet", pictures(count), [i % 2 for i in range(count)])
    # jobs that a shell starts in the background ignore Ctrl-C, and what they start inherits that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-c", INTERRUPTED, str(file), str(tmp_path)]
    try:
        maker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert maker.stdout.readline() == b"decoding\n"
    began = time.monotonic()
    maker.send_signal(signal.SIGINT)
    _, err = maker.communicate()
    assert maker.returncode == 130 and err == b"clsim: interrupted; repeat the same command to resume\n"
    assert time.monotonic() - began < 5, "two seconds, and more only on a busy machine"
    assert leftovers(tmp_path) == [] and list((tmp_path / "tables").iterdir()) == []


def test_temporary_folders_of_older_versions_go_when_they_are_a_day_old(tmp_path, encode):
    old, young, mine = (
        tmp_path / "tables" / name for name in ("abc-37-stop.x8d2kq1_", "abc-37-stop.y8d2kq1_", "notes")
    )
    for folder in (old, young, mine):
        folder.mkdir(parents=True)
    os.utime(old, (0, time.time() - 90000))
    os.utime(mine, (0, 0))
    ImageTable.decode(source_of(pictures(4), [0, 1, 0, 1], encode), 32, tmp_path)
    assert not old.exists() and young.exists() and mine.exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_tables_follow_the_umask(tmp_path, encode, umask, mode):
    before = os.umask(umask)
    try:
        ImageTable.decode(source_of(pictures(4), [0, 1, 0, 1], encode), 32, tmp_path / "cache")
    finally:
        os.umask(before)
    folder = entry(tmp_path / "cache")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [mode, mode]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode & 0o666}


def test_names_may_have_line_breaks_and_bytes_that_are_no_text(tmp_path, encode, tiny_limit):
    images = pictures(4)
    images[3] = encode(images[3])[:-30]
    names = ["a\nb.png", "\udcff.png", "c\u2028d.png", "last.png"]
    source = dataclasses.replace(source_of(images, [0] * 4, encode), names=names)
    with pytest.raises(RunFailed, match=r"cannot decode image last\.png"):
        ImageTable.decode(source, 32, tmp_path).pixels(np.arange(4))


# too large to be kept decoded


@pytest.fixture
def tiny_limit(monkeypatch):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", 100)


def both_forms(source, tmp_path, monkeypatch, **options):
    whole = ImageTable.decode(source, 8, tmp_path / "decoded", **options)
    monkeypatch.setattr(table_module, "LARGEST_DECODED", 100)
    return whole, ImageTable.decode(source, 8, tmp_path / "encoded", **options)


def same_images(found, expected):
    assert len(found) == len(expected)
    assert all((one == other).all() and one.dtype == np.uint8 for one, other in zip(found, expected, strict=True))


def test_the_limit_counts_the_bytes_of_whole_images(tmp_path, encode, monkeypatch):
    source = source_of(pictures(4, 16, 24), [0, 0, 1, 1], encode)
    for limit, form in ((4 * 3 * 8 * 12, WholeImages), (4 * 3 * 8 * 12 - 1, EncodedImages)):
        monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
        table = ImageTable.decode(source, 8, tmp_path / f"{limit}")
        assert isinstance(table.images, form) and table.bytes_of(np.arange(4)) == 4 * 3 * 8 * 12


def test_images_of_one_size_left_encoded_are_one_array(tmp_path, encode, monkeypatch):
    whole, left = both_forms(source_of(pictures(4), [0, 1, 0, 1], encode), tmp_path, monkeypatch)
    assert (left.whole(np.arange(4)) == whole.images).all() and left.whole(np.arange(4)).shape == (4, 3, 6, 6)
    assert left.bytes_of(np.arange(4)) == whole.bytes_of(np.arange(4)) == 4 * 3 * 6 * 6


def test_images_left_encoded_are_the_same(tmp_path, encode, monkeypatch):
    images = pictures(7) + [picture for i in range(6) for picture in pictures(1, 9 + i, 30 - i, i)]
    source = source_of(images, [i % 3 for i in range(13)], encode, domains=[i % 2 for i in range(13)])
    whole, left = both_forms(source, tmp_path, monkeypatch)
    assert isinstance(left.images, EncodedImages) and left.images.shape == whole.images.shape == (13, 3, 8, 8)
    rows = np.array([12, 0, 3, 3])
    assert (left.pixels(rows) == whole.pixels(rows)).all() and left.pixels(rows).dtype == np.uint8
    assert (left.pixels(np.arange(13)) == whole.pixels(np.arange(13))).all()
    same_images(left.whole(rows), whole.whole(rows))
    for name in ("labels", "domains"):
        assert (getattr(left, name) == getattr(whole, name)).all()
    assert left.fingerprint == whole.fingerprint
    assert left.bytes_of(rows) == whole.bytes_of(rows) == sum(image.nbytes for image in whole.whole(rows))
    again = ImageTable.decode(source, 8, tmp_path / "encoded")
    assert (again.pixels(rows) == whole.pixels(rows)).all(), "from the cache"
    same_images(again.whole(rows), whole.whole(rows))
    assert not list((tmp_path / "decoded").rglob("images.bin")), "only one form stays"


def test_bad_images_are_left_out_of_either_form(tmp_path, encode, monkeypatch):
    images = pictures(7)
    images[1], images[4] = b"not a picture", encode(images[4])[:-30]
    source = source_of(images, [0, 1, 2, 0, 1, 1, 1], encode)
    whole, left = both_forms(source, tmp_path, monkeypatch, on_bad_image="skip")
    assert (len(left), left.skipped.count) == (5, 2) and (left.labels == whole.labels).all()
    assert left.skipped == whole.skipped
    assert (left.pixels(np.arange(5)) == whole.images).all()


def test_a_bad_image_left_encoded_names_itself_when_it_is_read(tmp_path, encode, tiny_limit):
    images = pictures(6)
    images[4] = encode(images[4])[:-30]  # its header is whole
    table = ImageTable.decode(source_of(images, [0, 0, 0, 0, 1, 1], encode), 32, tmp_path)
    assert len(table.pixels(np.arange(4))) == 4
    with pytest.raises(RunFailed, match=r"cannot decode image 4\.png .*on_bad_image=skip leaves it out"):
        table.pixels(np.arange(6))
    images[4] = b"no header either"
    with pytest.raises(RequestError, match=r"cannot decode image 4\.png"):
        ImageTable.decode(source_of(images, [0, 0, 0, 0, 1, 1], encode, "other"), 32, tmp_path)
    assert leftovers(tmp_path) == []


def test_nothing_but_bad_images_left_encoded(tmp_path, encode, tiny_limit):
    broken = encode(pictures(1)[0])[:-30]
    with pytest.raises(RequestError, match="none of the images can be decoded"):
        ImageTable.decode(source_of([broken], [0], encode), 32, tmp_path, on_bad_image="skip")


def test_a_run_on_encoded_images_is_the_same_run(tmp_path, write_parquet, monkeypatch):
    for split, count in (("train", 6), ("test", 3)):
        images, labels = pictures(10 * count, seed=count), list(range(10)) * count
        names = [str(i) for i in range(10)]
        write_parquet(tmp_path / "mnist" / f"{split}-0.parquet", images, labels, names)
    runs = []
    for form in ("decoded", "encoded"):
        if form == "encoded":
            monkeypatch.setattr(table_module, "LARGEST_DECODED", 100)
        monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / f"cache {form}"))
        options = {"scenario": "five_datasets", "strategy": "l2p", "backbone": "vit_nano", "precision": "fp32"}
        options |= {"out": tmp_path / form, "data_dir": tmp_path, "epochs": 1, "scenario.sets": "mnist"}
        runs.append(clsim.run(**options))
    assert list((tmp_path / "cache encoded").rglob("images.bin")) and runs[0].matrix == runs[1].matrix
    weights = [checkpoint.load(run.directory / "checkpoint")["learner"] for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
