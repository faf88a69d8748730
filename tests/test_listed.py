"""Lists of paths and labels: CSV and JSON lines."""

import json
import os

import pytest
import written

from clsim.data.formats import read_any
from clsim.data.raw import Wanted
from clsim.data.streams import DataAccess
from clsim.errors import RequestError
from clsim.scenarios.folder import Folder

ROWS = [
    "images/train0.png,ant,train",
    "images/train1.png,bee,train",
    "images/test0.png,ant,test",
    "images/test1.png,bee,test",
]


def listed(tmp_path, rows=ROWS, header="path,label,split", file="labels.csv"):
    written.csv(tmp_path)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / file).write_text("\n".join([*([header] if header else []), *rows]) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("header", "change", "file"),
    [
        ("filename,class,set", lambda row: row, "labels.csv"),
        ("File Name;Class;Data Set", lambda row: row.replace(",", ";"), "labels.csv"),
        ("image_path\tlabels\tsubset", lambda row: row.replace(",", "\t"), "all.tsv"),
        ('"path","label","split"', lambda row: ",".join(f'"{each}"' for each in row.split(",")), "list.csv"),
        ("path, label, split", lambda row: row.replace(",", ", ") + "\r", "labels.csv"),
        ("\ufeffpath,label,split", lambda row: row.replace("images/", "images\\"), "labels.csv"),
    ],
)
def test_lists_as_people_write_them(tmp_path, header, change, file):
    train, test = read_any(listed(tmp_path, [change(row) for row in ROWS], header, file), Wanted())
    assert (train.class_names, train.labels.tolist(), test.labels.tolist()) == (("ant", "bee"), [0, 1], [0, 1])
    assert (train.split, test.split) == ("train", "test")
    assert train.read(1) == (tmp_path / "images" / "train1.png").read_bytes()
    assert train.notes[0].startswith("images are column ") and "splits column" in train.notes[0]


def test_a_list_without_a_header_and_without_splits_is_cut(tmp_path):
    rows = [f"images/{i}.png,{'bird' if i % 2 else 'ant'}" for i in range(60)]
    listed(tmp_path, rows, header="")
    for i in range(60):
        (tmp_path / "images" / f"{i}.png").write_bytes(written.png(written.pixels("test")[i % 3]))
    train, test = read_any(tmp_path, Wanted())
    assert len(train.labels) + len(test.labels) == 60 and train.class_names == ("ant", "bird")
    assert "a fifth of the images is for testing, by a hash of each image's name" in train.notes[-1]
    assert read_any(tmp_path / "labels.csv", Wanted())[0].names == train.names


def test_numbers_are_numbers_and_007_is_text(tmp_path):
    for labels, names in (
        (("a\u2028b", "c"), ("a\u2028b", "c")),
        (("2", "10"), ("2", "10")),
        (("1.0", "0.0"), ("0", "1")),
        (("007", "10"), ("007", "10")),
    ):
        rows = [row.replace("ant", labels[0]).replace("bee", labels[1]) for row in ROWS]
        assert read_any(listed(tmp_path, rows), Wanted())[0].class_names == names


def test_domains_are_a_column(tmp_path):
    rows = [f"{row},{domain}" for row, domain in zip(ROWS, ("art", "photo", "photo", "art"), strict=True)]
    listed(tmp_path, rows, "path,label,split,domain")
    data = DataAccess(tmp_path, tmp_path / "cache", 8)
    benchmark = Folder(protocol="domain", domains=("Photo", "art")).build(data)
    assert [each.domain for each in benchmark.train_stream] == ["photo", "art"]
    assert Folder(classes_per_experience=1, domain_folders=False).build(data).info.domain_names == ()
    listed(tmp_path)
    with pytest.raises(
        RequestError, match="labels.csv has no domains; this needs a column of domains .scenario.domain="
    ):
        Folder(protocol="domain").build(data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["../secret.png,ant,train"], "column 'path' has the path '../secret.png' in row 0, which is outside of"),
        (["/etc/hostname,ant,train"], "has the path '/etc/hostname' in row 0, which is outside of"),
        (["images/link/0.png,ant,train"], "has the path 'images/link/0.png' in row 0, which is outside of"),
        (["images/link.png,ant,train"], "has the path 'images/link.png' in row 0, which is outside of"),
        ([*ROWS, "images/none.png,ant,train"], "has the path 'images/none.png' in row 4, but .*none.png is no file"),
        (["images,ant,train"], "has the path 'images' in row 0, but .*images is no file"),
        (["images/pipe.png,ant,train"], "but .*pipe.png is no file"),
        ([",ant,train"], "column 'path' has no path in row 0, but ''"),
        ([*ROWS, "images/train0.png,,train"], "column 'label' has no value in 1 of 5 rows, first in row 4"),
        ([*ROWS, "images/train0.png,ant,"], "column 'split' has no value in 1 of 5 rows"),
        ([*ROWS, "images/train0.png,ant"], "line 6 has 2 values, but the first has 3"),
        ([*ROWS, 'images/train0.png,"ant,train'], "line 6 cannot be read: unexpected end of data"),
        ([f"{row.replace('ant', '-1').replace('bee', '2')}" for row in ROWS], "column 'label' has the label -1"),
        ([row.replace("test,", "").replace(",test", ",more") for row in ROWS], "no file|has the splits train, more"),
        ([], "labels.csv has no rows"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path, rows, message):
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(b"")
    listed(tmp_path / "set", rows)
    (tmp_path / "set" / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "set" / "images" / "pipe.png")
    with pytest.raises(RequestError, match=message):
        read_any(tmp_path / "set", Wanted())


def test_a_list_that_is_none_is_named_and_its_images_are_not_taken_for_a_class(tmp_path):
    for content in (b"", b"\0\0\0", "pfad,größe\na,b".encode("latin-1"), b"a,b\nc,d", b"path,path\nx,y"):
        listed(tmp_path)
        (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(
            RequestError, match=r"labels.csv (is empty|has no|is not UTF-8 .byte 7.; save|has two columns)"
        ):
            read_any(tmp_path, Wanted())
    (tmp_path / "labels.csv").unlink()
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(RequestError, match="labels.csv is not a file"):
        read_any(tmp_path, Wanted())


def test_lines_of_json_are_named_where_they_are_wrong(tmp_path):
    good = [json.dumps({"path": f"images/train{i}.png", "label": i, "split": "train"}) for i in range(2)]
    good += [json.dumps({"path": f"images/test{i}.png", "label": i, "split": "test"}) for i in range(2)]
    train, _ = read_any(listed(tmp_path, good, "", "all.jsonl"), Wanted())
    assert train.class_names == ("0", "1")
    (tmp_path / "all.json").write_text("[" + ",".join(good) + "]")
    assert read_any(tmp_path / "all.json", Wanted())[1].labels.tolist() == [0, 1]
    for line, message in (
        ('{"path": ', "line 5 is no JSON"),
        (r'{"path": "\ud800.png", "label": 0, "split": "test"}', r"has the path .*ud800.png' in row 4, but"),
        (r'{"path": "images/test0.png", "label": "\ud800", "split": "test"}', "has labels of type int and str"),
        ("[1]", r"has '\[1\]', but each line must be an object"),
        ('{"path": 3, "label": 0, "split": "test"}', "column 'path' has no path in row 4, but 3"),
        ('{"path": "images/test0.png", "split": "test"}', "column 'label' has no value in 1 of 5 rows, first in row 4"),
        (
            '{"path": "images/test0.png", "label": "a", "split": "test"}',
            "column 'label' has labels of type int and str",
        ),
        ('{"path": "images/test0.png", "label": [1], "split": "test"}', "has labels of type int and list"),
        ('{"path": "images/test0.png", "label": true, "split": "test"}', "has labels of type bool and int"),
        ('{"path": "images/test0.png", "label": 1e9, "split": "test"}', "has labels of type float and int"),
        ('{"path": "images/test0.png", "label": 99999999999999999999, "split": "test"}', "too large for a label"),
        ("[" * 100_000, "line 5 is no JSON"),
    ):
        (tmp_path / "all.jsonl").write_text("\n".join([*good, line]))
        with pytest.raises(RequestError, match=f"all.jsonl.* {message}"):
            read_any(tmp_path / "all.jsonl", Wanted())
