"""Data sets in every format, read by `folder` and `transfer` and by the scenarios that know a set by its name."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import written

from clsim import config, runner
from clsim.data.folders import read_tree
from clsim.data.formats import is_data_file, read_any
from clsim.data.raw import Wanted
from clsim.data.streams import DataAccess
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.scenarios.digit_domains import DigitDomains
from clsim.scenarios.five_datasets import FiveDatasets
from clsim.scenarios.folder import Folder
from clsim.scenarios.split_cifar100 import SplitCifar100
from clsim.scenarios.transfer import Transfer

WRITERS = {
    "save_to_disk": (written.save_to_disk, written.NAMES),
    "parquet": (written.parquet, written.NAMES),
    "npz": (written.npz, ("0", "1", "2")),
    "csv": (written.csv, written.NAMES),
    "jsonl": (written.jsonl, written.NAMES),
    "tar": (written.tars, written.NAMES),
    "cifar10": (written.cifar10, written.NAMES),
    "mnist": (written.idx, ("0", "1", "2")),
    "svhn": (written.svhn, ("0", "1", "2")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_has_the_same_images_labels_and_splits(name, tmp_path):
    write, names = WRITERS[name]
    sources = read_any(write(tmp_path), Wanted())
    side, grey = {"cifar10": 32, "svhn": 32, "mnist": 28}.get(name, written.SIDE), name == "mnist"
    assert len({source.fingerprint for source in sources}) == 2
    for source, split in zip(sources, ("train", "test"), strict=True):
        assert (source.split, source.class_names) == (split, names)
        labels = written.LABELS[split]
        assert source.labels.tolist() == labels
        assert len(set(source.names)) == len(source.labels)
        table = ImageTable.decode(source, 32, tmp_path / "cache")
        expected = written.pixels(split, side, grey)
        expected = np.repeat(expected[..., None], 3, -1) if grey else expected
        stored = {(image.tobytes(), int(label)) for image, label in zip(table.images, table.labels, strict=True)}
        given = {
            (image.transpose(2, 0, 1).tobytes(), label)
            for image, label in zip(expected, written.LABELS[split], strict=True)
        }
        assert stored == given
        order = [len(source.labels) - 1, 0, 1]
        assert [source.read(i) for i in order] == [
            source.take(np.arange(len(source.labels)) == i).read(0) for i in order
        ]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_makes_a_stream_and_a_transfer(name, tmp_path):
    data = DataAccess(WRITERS[name][0](tmp_path / "set"), tmp_path / "cache", 8)
    benchmark = Folder(classes_per_experience=1, order_seed=-1).build(data)
    assert [len(each.rows) for each in benchmark.train_stream] == [2, 2, 2]
    assert benchmark.train_table.skipped.count == 0
    transfer = Transfer(table="set", train=None)
    (train,) = transfer.build(DataAccess(tmp_path, tmp_path / "cache", 8)).train_stream
    assert train.table.fingerprint == benchmark.train_table.fingerprint and transfer.variant() == "set"
    assert Transfer(table=str(tmp_path / "set"), train=3).build(DataAccess(None, tmp_path / "cache", 8)).flip


def test_a_tree_of_class_folders_is_read_as_before_whatever_is_next_to_it(tmp_path, encode):
    for split in written.LABELS:
        for name in written.NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{split}.png").write_bytes(encode(written.pixels(split)[0]))
    (tmp_path / "labels.csv").write_text("path,label\nx.png,ant\n")
    expected = read_tree(tmp_path)
    found = read_any(tmp_path, Wanted())
    assert [source.fingerprint for source in found] == [source.fingerprint for source in expected]
    with pytest.raises(RequestError, match="scenario.image names a column, but .* is a folder of class folders"):
        read_any(tmp_path, Wanted(image="path"))


def test_a_file_is_a_data_set_too(tmp_path):
    for file in (written.npz(tmp_path) / "small.npz", written.csv(tmp_path) / "labels.csv"):
        assert is_data_file(file)
        assert [len(source.labels) for source in read_any(file, Wanted())] == [6, 3]
    options = {"scenario": "folder", "strategy": "ncm", "backbone": "vit_nano", "out": tmp_path / "runs"}
    options["data_dir"] = tmp_path / "small.npz"
    (run,) = runner.run_all(config.plan(options, {"scenario.classes_per_experience": 1}, None), quiet=True)
    assert run.matrix["total"] == [1, 1, 1]
    with pytest.raises(RequestError, match=r"small.npz \(it is a file\); here it must be a folder with cifar100/"):
        SplitCifar100().build(DataAccess(tmp_path / "small.npz", tmp_path, 8))


def test_what_is_no_data_set_is_named(tmp_path):
    (tmp_path / "notes.doc").write_text("x")
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", "no such file or folder: .*nowhere"),
        ("notes.doc", "notes.doc is of no known format; clsim reads class folders of images, Parquet, "),
        ("pipe.npz", "pipe.npz is not a file"),
        ("empty", "empty has no data set in it; clsim reads class folders of images"),
    ):
        with pytest.raises(RequestError, match=message):
            read_any(tmp_path / name, Wanted())
    assert not is_data_file(tmp_path / "pipe.npz")


def test_several_data_sets_in_one_folder_are_named(tmp_path):
    written.cifar10(tmp_path)
    written.cifar100(tmp_path)
    with pytest.raises(RequestError, match="data sets: .*cifar-10-batches-py, .*cifar-100-python; give the path"):
        read_any(tmp_path, Wanted())
    assert len(read_any(tmp_path / "cifar-100-python", Wanted())[0].class_names) == 100
    written.npz(tmp_path / "both")
    written.tars(tmp_path / "both")
    with pytest.raises(RequestError, match="several data sets: .*small.npz, .*test-000000.tar"):
        read_any(tmp_path / "both", Wanted())
    for place in ("a", "b"):
        written.npz(tmp_path / "c" / place)
    with pytest.raises(RequestError, match="several folders have data files: .*a, .*b; name one of them"):
        read_any(tmp_path / "c", Wanted())


def test_columns_are_named_where_their_names_are_unusual(tmp_path):
    table = written.arrow_table("train").rename_columns(["scan", "finding"])
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "all.parquet")
    with pytest.raises(
        RequestError, match="all.parquet has no column of labels; name it with scenario.label=COLUMN; there"
    ):
        read_any(tmp_path, Wanted())
    with pytest.raises(RequestError, match="has no column 'seen'; there are: scan, finding"):
        read_any(tmp_path, Wanted("scan", "seen"))
    data = DataAccess(tmp_path, tmp_path / "cache", 8)
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table, tmp_path / "test.parquet")
    (tmp_path / "all.parquet").unlink()
    benchmark = Folder(image="scan", label="finding", classes_per_experience=3).build(data)
    assert len(benchmark.train_table) == 6
    two = written.arrow_table("train").append_column("target", [written.LABELS["train"]])
    pq.write_table(two.replace_schema_metadata(None), tmp_path / "train.parquet")
    pq.write_table(written.arrow_table("test"), tmp_path / "test.parquet")
    with pytest.raises(
        RequestError, match="several columns that may be labels: label, target; name it with scenario.label"
    ):
        read_any(tmp_path, Wanted())
    pq.write_table(two, tmp_path / "train.parquet")
    assert read_any(tmp_path, Wanted())[0].notes == ("images are column 'image', labels column 'label'",)


def test_types_decide_where_names_do_not(tmp_path):
    pq.write_table(
        written.arrow_table("train", declare=False).append_column("file_name", [["x"] * 6]), tmp_path / "train.parquet"
    )
    pq.write_table(written.arrow_table("test", declare=False), tmp_path / "test.parquet")
    assert read_any(tmp_path, Wanted())[0].read(0) == written.png(written.pixels("train")[0])


def test_a_column_has_one_meaning(tmp_path):
    for split in written.LABELS:
        table = written.arrow_table(split, declare=False).append_column("style", [written.texts(split)])
        pq.write_table(table, tmp_path / f"{split}.parquet")
    train, _ = read_any(tmp_path, Wanted())
    assert (train.class_names, train.domain_names) == (("0", "1", "2"), written.NAMES)
    train, _ = read_any(tmp_path, Wanted(label="style"))
    assert (train.class_names, train.domain_names) == (written.NAMES, ())
    with pytest.raises(RequestError, match="images, labels, domains and splits are different columns"):
        read_any(tmp_path, Wanted(label="style", domain="style"))


def test_a_column_of_splits(tmp_path):
    table = pa.concat_tables([written.arrow_table("train"), written.arrow_table("test")])
    for name, values, expected in (
        ("set", ["train"] * 6 + ["val"] * 3, [6, 3]),
        ("split", ["test"] * 3 + ["train"] * 6, [6, 3]),
        ("split", ["a"] * 3 + ["b"] * 6, "has the splits a, b; which is for training"),
    ):
        pq.write_table(table.append_column(name, [values]), tmp_path / "all.parquet")
        written.arrow_file(tmp_path / "all.arrow", table.append_column(name, [values]))
        for file in (tmp_path / "all.parquet", tmp_path / "all.arrow"):
            if isinstance(expected, list):
                assert [len(source.labels) for source in read_any(file, Wanted())] == expected
            else:
                with pytest.raises(RequestError, match=expected):
                    read_any(file, Wanted())


def test_a_column_of_other_things_is_no_column_of_splits(tmp_path):
    table = pa.concat_tables([written.arrow_table("train")] * 20)
    pq.write_table(table.append_column("dataset", [["photo"] * 120]), tmp_path / "all.parquet")
    train, test = read_any(tmp_path, Wanted())
    assert len(train.labels) + len(test.labels) == 120
    assert "column 'dataset' has no names of splits (train, test)" in train.notes


def test_fields_without_effect_are_refused(tmp_path):
    for write, wanted, message in (
        (written.cifar10, Wanted(label="coarse"), "scenario.label names a column, but .*cifar-10-batches-py has none"),
        (written.tars, Wanted(domain="style"), "train-000000.tar has no domains; this needs a column of domains"),
        (written.npz, Wanted(domain="style"), "small.npz has no array 'style'"),
        (written.csv, Wanted(domain="style"), "labels.csv has no column 'style'; there are: path, label, split"),
        (written.parquet, Wanted(domains=("art",)), "has no domains; this needs a column of domains"),
        (written.npz, Wanted(exclude=("ant",)), "no class to exclude 'ant'; there are: 0, 1, 2"),
        (written.npz, Wanted(exclude=("0", "1", "2")), "no images of .* are left without the excluded classes"),
        (written.npz, Wanted(test_split="val"), "no split 'val'; there are: test, train"),
    ):
        with pytest.raises(RequestError, match=message):
            read_any(write(tmp_path / str(len(list(tmp_path.iterdir())))), wanted)
    with pytest.raises(RequestError, match="domain names a column of domains, and domain_folders=false"):
        Folder(domain="style", domain_folders=False)


def test_split_cifar100_takes_torchvisions_download(tmp_path):
    for root in (tmp_path, tmp_path / "cifar100"):
        written.cifar100(root)
        benchmark = SplitCifar100().build(DataAccess(tmp_path, tmp_path / "cache", 32))
        assert [len(each.rows) for each in benchmark.train_stream] == [10] * 10
        assert benchmark.info.class_names == tuple(f"thing {i}" for i in range(100))
        shutil.rmtree(root / "cifar-100-python")
    written.save_to_disk(tmp_path / "cifar100")
    with pytest.raises(RequestError, match="has no column 'img'; there are: image, label"):
        SplitCifar100().build(DataAccess(tmp_path, tmp_path / "cache", 32))
    for split in written.LABELS:
        names = [f"thing {i:02d}" for i in range(100)]
        table = pa.table({"img": [written.png(written.pixels("test")[0])] * 100, "fine_label": names, "domain": names})
        (tmp_path / "cifar100" / split / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        written.arrow_file(tmp_path / "cifar100" / split / "a.arrow", table)
    benchmark = SplitCifar100().build(DataAccess(tmp_path, tmp_path / "cache", 32))
    assert len(benchmark.train_table) == 100 and benchmark.info.domain_names == ()


def test_named_sets_take_torchvisions_downloads(tmp_path):
    written.svhn(tmp_path)
    written.idx(tmp_path)
    written.idx(tmp_path, "FashionMNIST", packed=True)
    written.cifar10(tmp_path)
    data = DataAccess(tmp_path, tmp_path / "cache", 32)
    sets = ("svhn", "mnist", "cifar10")
    benchmark = FiveDatasets(sets=sets).build(data)
    assert [each.name for each in benchmark.train_stream] == list(sets)
    assert benchmark.info.class_names == tuple(f"{name} {each}" for name in sets for each in WRITERS[name][1])
    assert not Transfer(table="mnist", train=None).build(data).flip
    with pytest.raises(RequestError, match="6 training images are too few for the 10 classes of fashion_mnist"):
        Transfer(table="fashion_mnist", train=None).build(data)
    with pytest.raises(RequestError, match="no usps/train.*parquet"):
        DigitDomains().build(data)


def test_a_table_of_transfer_is_a_name_or_a_path(tmp_path):
    data = DataAccess(None, tmp_path, 8)
    with pytest.raises(RequestError, match="no table 'cifra10' .did you mean 'cifar10'.*; and there is no such file"):
        Transfer(table="cifra10").build(data)
    with pytest.raises(RequestError, match="label is for a table that is a path, not for table=cifar10"):
        Transfer(table="cifar10", label="y")


@pytest.mark.parametrize("name", WRITERS)
def test_every_damaged_file_of_every_format_is_named_and_nothing_hangs(name, tmp_path):
    root = WRITERS[name][0](tmp_path)
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and file.suffix != ".png"]
    for file in files:
        if file.name in ("dataset_info.json", "cifar-10-python.tar.gz"):
            continue  # they are not read
        good = file.read_bytes()
        for damaged in (
            b"",
            good[:1],
            good[: len(good) // 4],
            bytes(len(good)),
            b"no data set\n" * 9,
            "pipe",
            "folder",
        ):
            if name == "tar" and damaged == bytes(len(good)):
                continue  # zeros are a tar file without members
            file.unlink()
            if damaged == "pipe":
                os.mkfifo(file)
            elif damaged == "folder":
                file.mkdir()
            else:
                file.write_bytes(damaged)
            half = "|class '" if file.suffix in (".csv", ".jsonl") else ""  # a list may end with any line
            with pytest.raises(RequestError, match=file.name + half) as caught:
                read_any(root, Wanted())
            assert "\n" not in str(caught.value)
            file.rmdir() if file.is_dir() else file.unlink()
            file.write_bytes(good)
    assert len(read_any(root, Wanted())[0].labels) == 6
