"""Readers: Parquet files and class folders to encoded images with labels, and their errors."""

import json
import shutil
import tracemalloc

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsim.data import readers
from clsim.data.folders import read_folder, subfolders
from clsim.data.readers import Hub, Source, held_out, parquet_files, read_parquet
from clsim.data.streams import DataAccess
from clsim.errors import RequestError

HUB = Hub("someone/letters", "0123abc", "small")


def pictures(count, size=4, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def write_tree(root, names, encode, count=2):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j, image in enumerate(pictures(count, seed=i)):
            (root / name / f"{j}.png").write_bytes(encode(image))


def test_class_names_come_from_the_metadata(tmp_path, write_parquet, encode):
    images = pictures(3)
    file = write_parquet(tmp_path / "train.parquet", images, [2, 0, 2], names=["ant", "bee", "cat"])
    source = read_parquet([file], "image", "label")
    assert source.class_names == ("ant", "bee", "cat")
    assert source.labels.tolist() == [2, 0, 2]
    assert source.labels.dtype == np.int64
    assert source.names == ["0.png", "1.png", "2.png"]
    assert source.read(1) == encode(images[1])
    assert source.domains is None


def test_integer_labels_without_names_are_their_numbers(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(3), [2, 0, 2])
    assert read_parquet([file], "image", "label").class_names == ("0", "1", "2")


def test_string_labels_sort(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(3), ["bee", "ant", "bee"])
    source = read_parquet([file], "image", "label")
    assert source.class_names == ("ant", "bee")
    assert source.labels.tolist() == [1, 0, 1]


def test_string_labels_follow_declared_names(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(2), ["bee", "ant"], names=["cat", "bee", "ant"])
    assert read_parquet([file], "image", "label").labels.tolist() == [1, 2]
    file = write_parquet(tmp_path / "b.parquet", pictures(2), ["bee", "dog"], names=["cat", "bee", "ant"])
    with pytest.raises(RequestError, match="'dog' is not among the declared names: cat, bee, ant"):
        read_parquet([file], "image", "label")


def test_plain_bytes_are_images_too(tmp_path, write_parquet, encode):
    images = pictures(2)
    file = write_parquet(tmp_path / "a.parquet", images, [0, 1], struct=False)
    source = read_parquet([file], "image", "label")
    assert source.read(1) == encode(images[1])
    assert source.names[1] == "row 1 of a.parquet"


def test_several_files_are_read_in_order(tmp_path, write_parquet, encode):
    images = pictures(5)
    files = [
        write_parquet(tmp_path / "0.parquet", images[:2], [0, 1]),
        write_parquet(tmp_path / "1.parquet", images[2:], [1, 1, 0]),
    ]
    source = read_parquet(files, "image", "label")
    assert source.labels.tolist() == [0, 1, 1, 1, 0]
    assert [source.read(i) for i in range(5)] == [encode(image) for image in images]


def test_domains_are_a_second_label(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 1, 0], domains=["sketch", "photo", "sketch"])
    source = read_parquet([file], "image", "label", "domain")
    assert source.domain_names == ("photo", "sketch")
    assert source.domains.tolist() == [1, 0, 1]


def test_a_missing_column_is_answered_with_those_there_are(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(1), [0], image="img", label="fine_label")
    with pytest.raises(RequestError, match="no column 'label'; it has: img, fine_label"):
        read_parquet([file], "img", "label")


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1]])
def test_labels_out_of_range(tmp_path, write_parquet, labels):
    file = write_parquet(tmp_path / "a.parquet", pictures(2), labels, names=["ant", "bee"])
    with pytest.raises(RequestError, match=f"labels run from {labels[0]} to {labels[1]}, but 2 names"):
        read_parquet([file], "image", "label")


def test_labels_with_gaps(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "a.parquet", pictures(2), [1, None])
    with pytest.raises(RequestError, match=r"a\.parquet: column 'label' has no value in 1 of 2 rows, first in row 1"):
        read_parquet([file], "image", "label")


def test_a_file_without_rows(tmp_path, write_parquet):
    file = write_parquet(tmp_path / "empty.parquet", [], [])
    with pytest.raises(RequestError, match=r"empty\.parquet has no rows"):
        read_parquet([file], "image", "label")


def test_local_files_are_found_by_split(tmp_path, write_parquet):
    for name in ("train-1", "train-0", "test-0"):
        write_parquet(tmp_path / "letters" / f"{name}.parquet", pictures(1), [0])
    found = parquet_files(tmp_path, "letters", "train", HUB)
    assert [file.name for file in found] == ["train-0.parquet", "train-1.parquet"]


def test_missing_data_names_the_files_and_the_way_out(tmp_path, monkeypatch):
    def no_network(*_args, **_options):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(RequestError) as caught:
        parquet_files(tmp_path, "letters", "train", HUB)
    message = str(caught.value)
    assert f"no letters/train*.parquet in {tmp_path}" in message
    assert "hf download someone/letters --repo-type dataset --revision 0123abc" in message
    assert "small/*train*.parquet into letters/ below --data-dir" in message
    with pytest.raises(RequestError, match="no --data-dir is given, and the Hub's someone/letters"):
        parquet_files(None, "letters", "train", HUB)
    with pytest.raises(RequestError, match="put the files of 'letters' there"):
        parquet_files(tmp_path, "letters", "train")
    with pytest.raises(RequestError, match="no such data directory"):
        parquet_files(tmp_path / "nowhere", "letters", "train", HUB)


def test_the_hub_is_asked_for_one_split_of_one_folder(tmp_path, monkeypatch, write_parquet):
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path)

    for folder in ("small", "large"):
        for split in ("train", "test"):
            write_parquet(tmp_path / folder / f"{split}-0.parquet", pictures(1), [0])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert parquet_files(None, "letters", "test", HUB) == [tmp_path / "small" / "test-0.parquet"]
    assert asked == {
        "repository": "someone/letters",
        "repo_type": "dataset",
        "revision": "0123abc",
        "allow_patterns": ["small/*test*.parquet"],
    }
    with pytest.raises(RequestError, match=r"has no small/\*valid\*\.parquet at revision 0123abc"):
        parquet_files(None, "letters", "valid", HUB)


def test_class_folders(tmp_path, encode):
    write_tree(tmp_path, ["bee", "ant", ".hidden"], encode)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    source = read_folder(tmp_path)
    assert source.class_names == ("ant", "bee")
    assert source.names == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.read(2) == (tmp_path / "bee" / "0.png").read_bytes()
    assert [path.name for path in subfolders(tmp_path)] == ["ant", "bee"]


def test_domain_folders(tmp_path, encode):
    write_tree(tmp_path, ["photo/bee", "photo/ant", "sketch/bee"], encode, count=1)
    source = read_folder(tmp_path, ["sketch", "photo"])
    assert source.names == ["sketch/bee/0.png", "photo/ant/0.png", "photo/bee/0.png"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.domains.tolist() == [0, 1, 1]
    assert source.domain_names == ("sketch", "photo")


def test_folders_without_images(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(RequestError, match="no images in class folders"):
        read_folder(tmp_path)
    with pytest.raises(RequestError, match="no folder"):
        read_folder(tmp_path / "nowhere")


def test_held_out_depends_on_the_name_alone():
    names = [f"digits/{i}" for i in range(5000)]
    chosen = held_out(names)
    assert 0.18 < chosen.mean() < 0.22
    assert (held_out(names[::-1]) == chosen[::-1]).all()
    assert (held_out(names[:7]) == chosen[:7]).all()
    assert held_out(names, 0.5)[chosen].all()  # a larger share holds the smaller one
    assert not held_out(names, 0).any()


def test_every_class_of_two_or_more_has_both_training_and_test_images():
    """`few` and `all` are names that the hash alone would leave without test images, and without training images."""
    names = [f"{i}.png" for i in range(400)]
    plain = held_out(names)
    few, every = np.flatnonzero(~plain)[:20], np.flatnonzero(plain)[:3]
    others = np.setdiff1d(np.arange(400), [*few, *every, 399])
    labels = np.full(400, 3)
    labels[few], labels[every], labels[399] = 0, 1, 2
    chosen = held_out(names, labels=labels)
    assert chosen[few].sum() == chosen[every].sum() == 1
    assert (chosen[others] == plain[others]).all() and chosen[399] == plain[399], "the rest is as it was"
    draw = np.random.default_rng(0).permutation(400)
    assert (held_out([names[i] for i in draw], labels=labels[draw]) == chosen[draw]).all(), "in any order"
    alone = held_out([names[i] for i in few], labels=labels[few])
    assert (alone == chosen[few]).all(), "other classes do not change it"


def test_fingerprints_follow_the_content_and_not_the_place(tmp_path, write_parquet, encode):
    file = write_parquet(tmp_path / "a" / "train.parquet", pictures(2), [0, 1])
    moved = tmp_path / "b" / "renamed.parquet"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    other = write_parquet(tmp_path / "c.parquet", pictures(2, seed=1), [0, 1])
    prints = [read_parquet([path], "image", "label").fingerprint for path in (file, moved, other)]
    assert prints[0] == prints[1] != prints[2]

    write_tree(tmp_path / "tree", ["ant", "bee"], encode)
    shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    before = read_folder(tmp_path / "tree").fingerprint
    assert read_folder(tmp_path / "copy").fingerprint == before
    # the same pictures in the same order, one of them with another label
    (tmp_path / "copy" / "ant" / "1.png").rename(tmp_path / "copy" / "bee" / "-.png")
    assert read_folder(tmp_path / "copy").fingerprint != before


def letters(count, prefix, fingerprint):
    return Source(
        read=lambda i: f"{prefix}{i}".encode(),
        names=[f"{prefix}{i}.png" for i in range(count)],
        labels=np.arange(count) % 2,
        class_names=("0", "1"),
        fingerprint=fingerprint,
    )


def test_take_keeps_the_chosen(tmp_path):
    source = letters(4, "a", "f")
    kept = source.take(np.array([False, True, False, True]))
    assert kept.names == ["a1.png", "a3.png"]
    assert kept.labels.tolist() == [1, 1]
    assert kept.read(1) == b"a3"
    rest = source.take(np.array([True, False, True, False]))
    assert len({source.fingerprint, kept.fingerprint, rest.fingerprint}) == 3


def test_joined_sources_keep_their_classes_apart():
    joined = Source.join([letters(3, "a", "f"), letters(2, "b", "g")], ["mnist", "svhn"])
    assert joined.class_names == ("mnist 0", "mnist 1", "svhn 0", "svhn 1")
    assert joined.labels.tolist() == [0, 1, 0, 2, 3]
    assert [joined.read(i) for i in range(5)] == [b"a0", b"a1", b"a2", b"b0", b"b1"]
    assert joined.names[3] == "svhn/b0.png"
    swapped = Source.join([letters(2, "b", "g"), letters(3, "a", "f")], ["svhn", "mnist"])
    assert swapped.fingerprint != joined.fingerprint
    assert (
        Source.join([letters(3, "a", "f"), letters(2, "b", "g")], ["mnist", "svhn"]).fingerprint == joined.fingerprint
    )


@pytest.fixture
def entered(monkeypatch):
    """The row groups that are read from their beginning."""
    found, real = [], pq.ParquetFile.iter_batches

    def iter_batches(self, size, groups, *rest, **more):
        found.extend(groups)
        return real(self, size, groups, *rest, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    return found


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("at_once", [2, 64])
def test_row_groups_are_read_in_turn_and_few_rows_are_kept(tmp_path, entered, monkeypatch, struct, at_once):
    monkeypatch.setattr(readers._RowGroups, "AT_ONCE", at_once)
    data = [bytes([i]) * 3 for i in range(25)]
    column = [{"bytes": item, "path": f"{i}.png"} for i, item in enumerate(data)] if struct else data
    for part, rows in enumerate((slice(0, 12), slice(12, 25))):
        table = pa.table({"image": column[rows], "label": list(range(25))[rows]})
        pq.write_table(table, tmp_path / f"train-{part}.parquet", row_group_size=5)
    source = read_parquet(sorted(tmp_path.glob("*.parquet")), "image", "label")
    assert entered == [], "labels and paths come without images"
    assert [source.read(i) for i in range(25)] == data
    assert entered == [0, 1, 2, 0, 1, 2], "each group once"
    assert source.names[13] == ("13.png" if struct else "row 13 of train-0.parquet")
    assert [source.read(i) for i in (3, 3, 4, 20, 21, 0)] == [data[i] for i in (3, 3, 4, 20, 21, 0)]
    assert entered[6:] == [0, 1, 0], "back in an earlier group, on to a later one, and back again"
    del entered[:]
    kept = source.take(np.arange(25) % 2 == 1)
    assert [kept.read(i) for i in range(12)] == data[1::2] and entered == [1, 2, 0, 1, 2], "group 0 was open"


def test_a_row_group_as_large_as_its_file_is_read_in_parts(tmp_path):
    draw = np.random.default_rng(0)
    data = [draw.bytes(4000) for _ in range(10_000)]  # 40 MB in a single group
    pq.write_table(pa.table({"image": data, "label": [0] * len(data)}), tmp_path / "train.parquet")
    assert pq.read_metadata(tmp_path / "train.parquet").num_row_groups == 1
    source, before, most = read_parquet([tmp_path / "train.parquet"], "image", "label"), pa.total_allocated_bytes(), 0
    for i, item in enumerate(data):
        assert source.read(i) == item
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < 16 << 20, "a page, which Arrow writes with 1024 rows at least, is 4 MB"


# Parquet files as people have them

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file, labels=(0, 1), images=None, metadata=None):
    """A file with a column `image` (distinct bytes, if none are given) and a column `label`."""
    labels = labels if isinstance(labels, pa.Array) else pa.array(list(labels))
    images = [{"bytes": bytes([i]), "path": None} for i in range(len(labels))] if images is None else images
    table = pa.table({"image": images if isinstance(images, pa.Array) else pa.array(images, IMAGE), "label": labels})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if metadata is None else table.replace_schema_metadata({"huggingface": metadata}), file)
    return file


def read(tmp_path, split="train"):
    return DataAccess(tmp_path, tmp_path / "cache", 8).parquet("set", split, "image", "label")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "is missing in .*set: number 00001-of-00003 .2 of 3 are"),
        (["train-00000-of-00002"], "is missing in .*set: number 00001-of-00002"),
        (["train-0", "train-2"], "is missing in .*set: number 1 .2 of 3"),
        (
            ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
            "has two sets of files of the split",
        ),
        (
            ["train-00000-of-00001-0123456789abcdef", "train-00000-of-00001"],
            "has two sets of files of the split 'train'",
        ),
        (["train", "train-0"], "two sets of files .*: train-0.parquet and train.parquet; keep one"),
        (
            ["train_clean", "train_noisy"],
            "several files that may be the split 'train': train_clean.parquet, train_noisy",
        ),
    ],
)
def test_files_of_a_split_are_complete_and_of_one_set(tmp_path, files, message):
    for name in files:
        write(tmp_path / "set" / f"{name}.parquet")
    with pytest.raises(RequestError, match=message):
        read(tmp_path)


def test_a_file_with_a_longer_name_does_not_join_a_split(tmp_path):
    for name in ("train-00000-of-00002-0123456789abcdef", "train-00001-of-00002-fedcba9876543210", "test"):
        write(tmp_path / "set" / f"{name}.parquet")
    noisy = write(tmp_path / "set" / "train_noisy_labels.parquet", [5, 5])
    found = read(tmp_path).found
    assert (found.split, found.images, dict(found.classes)) == ("train", 4, {"0": 2, "1": 2})
    assert found.left_out == {"not a file of the split 'train'": (str(noisy),)}
    assert read(tmp_path, "test").found.left_out == {}
    alone = write(tmp_path / "alone" / "train_noisy_labels.parquet")
    assert parquet_files(tmp_path, "alone", "train") == [alone]


def test_files_that_are_no_parquet_are_named(tmp_path):
    good = write(tmp_path / "set" / "train-0.parquet").read_bytes()
    for content in (good[:-20], good[: len(good) // 2], b"PAR1", b"label,image\n", b""):
        (tmp_path / "set" / "train-1.parquet").write_bytes(content)
        with pytest.raises(
            RequestError, match=r"train-1.parquet (is empty|cannot be read as Parquet; it is trunc)"
        ) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "set" / "train-1.parquet").unlink()
    (tmp_path / "set" / "train-1.parquet").mkdir()
    with pytest.raises(RequestError, match="train-1.parquet is not a file"):
        read(tmp_path)


def test_a_damaged_name_of_a_column_is_named_by_its_file(tmp_path):
    file = write(tmp_path / "set" / "train.parquet")
    for name in (b"label", b"bytes"):
        good = file.read_bytes()
        file.write_bytes(good.replace(name, b"\xf7" + name[1:]))
        with pytest.raises(RequestError, match="train.parquet cannot be read as Parquet; it is truncated, damaged"):
            read(tmp_path)
        file.write_bytes(good)


def test_damage_inside_of_a_file_is_found_and_named(tmp_path):
    file = tmp_path / "set" / "train.parquet"
    write(file, [0] * 500, [{"bytes": bytes(range(256)), "path": None}] * 500)
    good, silent = file.read_bytes(), 0
    for place in range(4, len(good), len(good) // 60):
        file.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) * 8 + good[place + 8 :])
        try:
            source = read(tmp_path)
            for i in range(len(source.labels)):
                source.read(i)
            silent += 1  # Arrow cannot notice all damage; it must only not end in another error
        except RequestError as error:
            assert "train.parquet" in str(error)
    assert silent < 60


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (pa.array(["0", "1"]), "train-1.parquet: column 'label' has text, but whole numbers in train-0.parquet"),
        (
            pa.array([0.0, 1.0]),
            "train-1.parquet: column 'label' has labels of type double; labels are whole numbers or",
        ),
        (pa.array([True, False]), "train-1.parquet: column 'label' has labels of type bool"),
        (pa.array([0, None]), "train-1.parquet: column 'label' has no value in 1 of 2 rows, first in row 1"),
        (pa.array([0, -1]), "column 'label' has the label -1; labels below 0 usually mean images without labels"),
        (pa.array([0, 2**64 - 1], pa.uint64()), "column 'label' has a number that is too large"),
    ],
)
def test_labels_that_are_none_are_refused_with_file_and_column(tmp_path, second, message):
    write(tmp_path / "set" / "train-0.parquet")
    write(tmp_path / "set" / "train-1.parquet", second)
    with pytest.raises(RequestError, match=message):
        read(tmp_path)


def test_a_file_with_other_columns_is_named(tmp_path):
    write(tmp_path / "set" / "train-0.parquet")
    pq.write_table(pa.table({"picture": [b"a"], "label": [0]}), tmp_path / "set" / "train-1.parquet")
    with pytest.raises(RequestError, match=r"train-1.parquet has no column 'image'; it has: picture, label"):
        read(tmp_path)


def test_numbers_of_any_width_and_dictionaries_join(tmp_path):
    write(tmp_path / "set" / "train-0.parquet", pa.array([0, 1], pa.int64()))
    write(tmp_path / "set" / "train-1.parquet", pa.array([], pa.int64()))
    write(tmp_path / "set" / "train-2.parquet", pa.array([1, 2], pa.int32()).dictionary_encode())
    write(tmp_path / "set" / "train-3.parquet", pa.array([3, 0], pa.uint64()))
    source = read(tmp_path)
    assert source.labels.tolist() == [0, 1, 1, 2, 3, 0] and source.class_names == ("0", "1", "2", "3")
    assert [source.read(i) for i in range(6)] == [b"\0", b"\1"] * 3
    for i, kind in enumerate((pa.string(), pa.large_string())):
        write(tmp_path / "text" / f"train-{i}.parquet", pa.array(["cat", "ant"], kind).dictionary_encode())
    write(tmp_path / "text" / "train-2.parquet", ["bee", "cafe\u0301", "caf\u00e9"])
    text = DataAccess(tmp_path, tmp_path, 8).parquet("text", "train", "image", "label")
    assert text.class_names == ("ant", "bee", "caf\u00e9", "cat") and text.labels.tolist() == [3, 0, 3, 0, 1, 2, 2]


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 2, 5], [10**9, 10**9 + 7, 4 * 10**9]])
def test_labels_from_1_with_gaps_or_large_name_the_classes_that_occur(tmp_path, labels):
    write(tmp_path / "set" / "train.parquet", [*labels, labels[0]])
    write(tmp_path / "set" / "test.parquet", labels[1:])
    for split, ids in (("train", [0, 1, 2, 0]), ("test", [1, 2])):
        source = read(tmp_path, split)
        assert (source.class_names, source.labels.tolist()) == (tuple(map(str, labels)), ids)
    assert source.found.notes == ("the 3 classes are the numbers that occur in column 'label'",)
    tracemalloc.start()
    read_parquet([tmp_path / "set" / "train.parquet"], "image", "label")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20, "no list of names up to the largest"
    tracemalloc.stop()


def test_images_are_structs_bytes_or_paths_and_may_differ_between_files(tmp_path, encode):
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    (tmp_path / "set" / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    no_path = pa.array([{"bytes": b"c"}, {"bytes": b"d"}], pa.struct([("bytes", pa.binary())]))
    mixed = pa.array([{"bytes": b"e", "path": "e.png"}, {"bytes": None, "path": "pictures/a.png"}], IMAGE)
    kinds = [no_path, pa.array([b"f", b"g"], pa.large_binary()), pa.array(["pictures/a.png", "b.png"]), mixed]
    for i, images in enumerate(kinds):
        write(tmp_path / "set" / f"train-{i}.parquet", images=images)
    source = read(tmp_path)
    assert b"".join(source.read(i) for i in range(8)) == b"cdfgabea"
    assert source.names[4:] == ["pictures/a.png", "b.png", "e.png", "pictures/a.png"]
    before = source.fingerprint
    (tmp_path / "b.png").write_bytes(b"B")
    assert read(tmp_path).fingerprint != before, "the images are in other files"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pa.array([b"a", None]), "train.parquet: column 'image' has no image in 1 of 2 rows, first in row 1"),
        (pa.array([{"bytes": b"a", "path": "a.png"}, None], IMAGE), "column 'image' has no image in 1 of 2 rows"),
        (
            pa.array(["a.png", "b.png"]),
            "column 'image' has the path 'a.png' in row 0, and no bytes; this file is neither",
        ),
        (pa.array([[1], [2]]), "train.parquet: column 'image' has no images: it is list<"),
        (pa.array([{"data": b"a"}] * 2), "train.parquet: column 'image' has no images: it is struct<data: binary>"),
    ],
)
def test_images_that_are_none_are_refused_with_file_and_column(tmp_path, images, message):
    write(tmp_path / "set" / "train.parquet", images=images)
    with pytest.raises(RequestError, match=message):
        read(tmp_path)


def features(names):
    return json.dumps({"info": {"features": {"label": {"names": names}}}})


@pytest.mark.parametrize(
    "metadata", ["{", "[]", "null", '{"info": []}', '{"info": {"features": null}}', "\xff", features([])]
)
def test_odd_metadata_declares_no_names(tmp_path, metadata):
    write(tmp_path / "set" / "train.parquet", metadata=metadata.encode("latin-1"))
    source = read(tmp_path)
    assert source.class_names == ("0", "1")
    assert [("not JSON" in note) for note in source.found.notes] == [True] * (metadata in ("{", "\xff"))


def test_declared_names_are_a_list_of_text_that_all_files_share(tmp_path):
    write(tmp_path / "set" / "train-0.parquet", metadata=features({"0": "ant", "1": "bee"}))
    write(tmp_path / "set" / "train-1.parquet", metadata=features(["ant", "bee"]))
    assert read(tmp_path).class_names == ("ant", "bee")
    write(tmp_path / "set" / "train-1.parquet", metadata=features(["bee", "ant"]))
    with pytest.raises(
        RequestError, match="train-1.parquet: .* declares other class names than train-0.parquet; .* 'ant'"
    ):
        read(tmp_path)
    write(tmp_path / "set" / "train-1.parquet", metadata=features([1, 2]))
    with pytest.raises(RequestError, match="column 'label' has names that are no list of text"):
        read(tmp_path)
    write(tmp_path / "two" / "train.parquet", metadata=features(["Star", "star"]))
    notes = DataAccess(tmp_path, tmp_path, 8).parquet("two", "train", "image", "label").found.notes
    assert notes == ("the class names 'Star' and 'star' differ only by case, or by '_' and a blank",)
