"""Folders that `save_to_disk` wrote, and Arrow files that are damaged."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
import written

from clsim.data.formats import read_any
from clsim.data.raw import Wanted
from clsim.errors import RequestError

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def saved(tmp_path):
    return written.save_to_disk(tmp_path / "set")


def replace(saved, **columns):
    """Write the test images again with other columns."""
    table = written.arrow_table("test")
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    written.arrow_file(saved / "test" / "data-00000-of-00001.arrow", table)


def test_one_split_a_file_and_the_other_arrow_format(saved, tmp_path):
    train, _ = read_any(saved, Wanted())
    assert train.names[4] == "row 4 of data-00001-of-00002.arrow"
    file = tmp_path / "all.arrow"
    table = pa.concat_tables([written.arrow_table("train")] * 20)
    written.arrow_file(file, table)
    cut = read_any(file, Wanted())
    assert sum(len(source.labels) for source in cut) == 120 and cut[0].class_names == written.NAMES
    with pa.OSFile(str(tmp_path / "new.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    again = read_any((tmp_path / "new.arrow").rename(file), Wanted())
    assert again[1].read(3) == cut[1].read(3) and again[0].labels.tolist() == cut[0].labels.tolist()
    (tmp_path / "cache").mkdir()
    for split in ("train", "test"):  # the names in datasets' own cache
        written.arrow_file(tmp_path / "cache" / f"small-{split}.arrow", written.arrow_table(split))
    assert [source.split for source in read_any(tmp_path / "cache", Wanted())] == ["train", "test"]


def test_one_split_alone_is_cut(saved):
    state = json.loads((saved / "train" / "state.json").read_text())
    for name in [each["filename"] for each in state["_data_files"]]:
        table = pa.concat_tables([written.arrow_table("train")] * 20)
        written.arrow_file(saved / "train" / name, table)
    train, test = read_any(saved / "train", Wanted())
    assert len(train.labels) + len(test.labels) == 240 and test.split == "test (20 %)"


def test_labels_of_every_kind(saved):
    for labels, message in (
        (pa.array([2, 1, 0], pa.int8()), None),
        (pa.array(["cow", "bee", "ant"]).dictionary_encode(), None),
        (pa.array(["cow", "bee", None]), "column 'label' has no value in 1 of 3 rows, first in row 2"),
        (pa.array([2, 1, -1]), "column 'label': labels run from -1 to 2, but 3 names are declared"),
        (pa.array([2, 1, 10**9]), "column 'label': labels run from 0 to 1000000000, but 3 names are declared"),
        (pa.array([2.0, 1.0, 0.0]), "column 'label' has labels of type double"),
    ):
        replace(saved, label=labels)
        if message is None and pa.types.is_integer(labels.type):
            assert read_any(saved, Wanted())[1].labels.tolist() == [2, 1, 0]
        else:
            with pytest.raises(RequestError, match=message or "has text, but whole numbers in"):
                read_any(saved, Wanted())


def test_images_are_bytes_or_paths(saved):
    (saved / "test" / "a.png").write_bytes(b"a")
    for images, message in (
        (pa.array([b"x", b"y", b"z"]), None),
        (pa.array([{"bytes": None, "path": "a.png"}] * 3, KIND), None),
        (pa.array(["a.png"] * 3), None),
        (
            pa.array([{"bytes": b"x", "path": None}, None, {"bytes": b"x", "path": None}], KIND),
            "has no image in 1 rows",
        ),
        (pa.array([b"x", None, b"z"]), "column 'image' has no image in 1 of 3 rows, first in row 1"),
        (pa.array(["a.png", "b.png", "a.png"]), "column 'image' has the path 'b.png' in row 1, and no bytes"),
        (pa.array([[1], [2], [3]]), "column 'image' has no images: it is list<"),
    ):
        replace(saved, image=images)
        if message is None:
            assert read_any(saved, Wanted())[1].read(0) in (b"x", b"a")
        else:
            with pytest.raises(RequestError, match=f"data-00000-of-00001.arrow: .*{message}"):
                read_any(saved, Wanted())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", "{", "dataset_dict.json is no JSON"),
        ("dataset_dict.json", "[]", "dataset_dict.json is no JSON object"),
        ("dataset_dict.json", "[" * 100_000, "dataset_dict.json is no JSON"),
        ("dataset_dict.json", "{}", "dataset_dict.json has no list of 'splits'"),
        ("dataset_dict.json", '{"splits": ["../train", "test"]}', "dataset_dict.json has no list of 'splits'"),
        ("dataset_dict.json", '{"splits": ["train", "more"]}', "no such file: .*more/state.json"),
        ("train/state.json", "{}", "state.json has no list of '_data_files'"),
        (
            "train/state.json",
            '{"_data_files": [{"filename": "../a.arrow"}]}',
            "state.json has no list of '_data_files'",
        ),
        ("train/state.json", '{"_data_files": [{"filename": "\\ud800"}]}', r"no such file: .*\\ud800"),
        ("train/state.json", '{"_data_files": [{"filename": "b.arrow"}]}', "no such file: .*train/b.arrow"),
        (
            "train/state.json",
            '{"_data_files": [], "_indices_data_files": [1]}',
            "has an index of its rows; save it again",
        ),
    ],
)
def test_its_json_files_are_not_trusted(saved, file, content, message):
    (saved / file).write_text(content)
    with pytest.raises(RequestError, match=message):
        read_any(saved, Wanted())


def test_files_that_are_missing_empty_or_disagree_are_named(saved):
    second = saved / "train" / "data-00001-of-00002.arrow"
    written.arrow_file(second, written.arrow_table("train").slice(0, 0))
    assert len(read_any(saved, Wanted())[0].labels) == 3
    for table, message in (
        (written.arrow_table("train").drop_columns("label"), "has no column 'label'; it has: image"),
        (written.arrow_table("train", ["a"] * 6), "column 'label' has text, but whole numbers in data-00000-of-00002"),
    ):
        written.arrow_file(second, table)
        with pytest.raises(RequestError, match=f"data-00001-of-00002.arrow.* {message}"):
            read_any(saved, Wanted())
    second.unlink()
    with pytest.raises(RequestError, match="no such file: .*data-00001-of-00002.arrow"):
        read_any(saved, Wanted())
    os.mkfifo(second)
    with pytest.raises(RequestError, match="data-00001-of-00002.arrow is not a file"):
        read_any(saved, Wanted())


def test_damage_inside_of_an_arrow_file_is_found_or_harmless(saved):
    file = saved / "test" / "data-00000-of-00001.arrow"
    good, silent, draw = file.read_bytes(), 0, np.random.default_rng(0)
    for place in range(0, len(good), max(1, len(good) // 80)):
        file.write_bytes(good[:place] + draw.bytes(4) + good[place + 4 :])
        try:
            for source in read_any(saved, Wanted()):
                for i in range(len(source.labels)):
                    source.read(i)
            silent += 1  # pixels and labels have no checksum
        except RequestError as error:
            assert str(saved) in str(error) and "\n" not in str(error)
    assert 0 < silent < 80
    for length in (1, len(good) // 3, len(good) // 2):
        file.write_bytes(good[:length])
        with pytest.raises(
            RequestError, match="data-00000-of-00001.arrow (cannot be read as Arrow; it is trunc|has no r)"
        ):
            read_any(saved, Wanted())
