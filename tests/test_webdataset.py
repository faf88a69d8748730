"""WebDataset shards: samples, labels, and tar files that are damaged or malicious."""

import json
import tarfile

import pytest
import written

from clsim.data.formats import read_any
from clsim.data.raw import Wanted
from clsim.data.table import ImageTable
from clsim.errors import RequestError

PNG = written.png(written.pixels("test")[0])


def shards(tmp_path, *members, test=None):
    """A shard of these members for training, and a good one for testing."""
    written.tar_file(tmp_path / "train-000000.tar", members)
    written.tar_file(tmp_path / "test-000000.tar", written.samples("test") if test is None else test)
    return tmp_path


def test_shards_may_be_packed_or_in_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        members = written.samples("test" if split == "val" else split)
        written.tar_file(tmp_path / "packed" / f"{split}.tar.gz", members)
        written.tar_file(tmp_path / "folders" / split / "00000.tar", members[:4])
        written.tar_file(tmp_path / "folders" / split / "00001.tar", members[4:])
    sources = read_any(tmp_path / "folders", Wanted())
    (tmp_path / "packed" / "train.tar.gz").rename(tmp_path / "packed" / "train.tgz")
    packed = read_any(tmp_path / "packed" / "train.tgz", Wanted())  # split by hash
    assert sum(len(part.labels) for part in packed) == len(sources[0].labels)
    with pytest.raises(RequestError, match="class 'ant' has 1 images"):
        read_any(tmp_path / "packed" / "val.tar.gz", Wanted())
    for one in sources:
        assert one.class_names == written.NAMES
    assert (sources[0].names[0], sources[0].labels.tolist()) == ("train/000000.png", written.LABELS["train"])
    backwards = [sources[0].read(i) for i in range(5, -1, -1)]
    assert backwards[::-1] == [sources[0].read(i) for i in range(6)]


def test_labels_and_domains_are_members_or_keys_of_json(tmp_path):
    def sample(i, label, domain):
        about = json.dumps({"finding": label, "style": domain, "caption": "x"}).encode()
        return [(f"a/{i}.png", PNG), (f"a/{i}.json", about), (f"a/{i}.seg.png", b"mask"), (f"a/{i}.txt", b"a caption")]

    members = [*sample(0, 7, "art"), *sample(1, 5, "photo")]
    shards(tmp_path, *members, test=members)
    with pytest.raises(RequestError, match="sample 'a/0' has no label .*; it has: png, json, seg.png, txt"):
        read_any(tmp_path, Wanted())
    with pytest.raises(RequestError, match="sample 'a/0' has 2 images; it has: png, json, seg.png, txt"):
        read_any(tmp_path, Wanted(label="finding"))
    train, _ = read_any(tmp_path, Wanted(image="png", label="finding"))
    assert (train.class_names, train.labels.tolist()) == (("5", "7"), [1, 0])
    assert (train.domain_names, train.domains.tolist()) == (("art", "photo"), [0, 1])
    assert read_any(tmp_path, Wanted(image="png", label="finding", domain_folders=False))[0].domains is None


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", PNG)], r"train-000000.tar: sample '0' has no label \(.cls, or a label in .json\); it has: png"),
        ([("0.cls", b"1")], "train-000000.tar: sample '0' has no images; it has: cls"),
        ([("0.png", PNG), ("0.cls", b"1"), ("0.png", PNG)], "train-000000.tar has '0.png' twice"),
        ([("0.png", PNG), ("0.cls", b"")], "train-000000.tar: the label has no value in 1 of 1 rows, first in row 0"),
        ([("0.png", PNG), ("0.cls", b"-1")], "train-000000.tar: the label has the label -1"),
        ([("0.png", PNG), ("0.cls", b"\xff")], "train-000000.tar: sample '0': .cls is not UTF-8"),
        ([("0.png", PNG), ("0.cls", b"x" * (1 << 21))], "sample '0': .cls has 2097152 bytes, and is no label"),
        ([("0.png", PNG), ("0.json", b"{")], "train-000000.tar: sample '0': .json is no JSON"),
        ([("0.png", PNG), ("0.json", b"[1]")], "train-000000.tar: sample '0': .json is no object"),
        ([("0.png", PNG), ("0.json", b"[" * 100_000)], "train-000000.tar: sample '0': .json is no JSON"),
        ([("0.png", PNG), ("0.json", b'{"label": null}')], "sample '0' has no label"),
        ([("0.png", PNG), ("0.json", b'{"label": 1, "target": 2}')], "sample '0' has several values .* label, target"),
        ([("README.md", b"x")], "train-000000.tar has no images with labels; a sample is 000000.jpg and 000000.cls"),
        ([], "train-000000.tar has no images with labels"),
    ],
)
def test_samples_that_are_none_are_named(tmp_path, members, message):
    with pytest.raises(RequestError, match=message):
        read_any(shards(tmp_path, *members, test=members), Wanted())


def test_a_tar_cannot_reach_out_of_itself(tmp_path):
    inside = tmp_path / "set"
    members = [(f"../../{name}", data) for name, data in written.samples("train")]
    shards(inside, ("/etc/passwd", b"x"), *members)
    with tarfile.open(inside / "train-000000.tar", "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "9.png"), (tarfile.LNKTYPE, "8.png"), (tarfile.FIFOTYPE, "7.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    train, _ = read_any(inside, Wanted())
    assert train.labels.tolist() == written.LABELS["train"] and train.names[0] == "../../train/000000.png"
    assert [train.read(i) for i in range(6)] == [written.png(image) for image in written.pixels("train")]
    left = train.left_out["not a sample's image or label"]
    assert [name.rpartition(": ")[2] for name in left] == ["/etc/passwd", "9.png", "8.png", "7.png"]
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


def test_names_that_are_not_utf8_are_names_of_samples(tmp_path):
    members = [
        (f"{i}\udce9.{kind}", PNG if kind == "png" else b"%d" % (i % 2)) for i in range(80) for kind in ("png", "cls")
    ]
    written.tar_file(tmp_path / "all.tar", members)
    train, test = read_any(tmp_path / "all.tar", Wanted())
    assert len(train.labels) + len(test.labels) == 80
    train, _ = read_any(
        shards(tmp_path / "two", ("\udce9/0.png", b"no image"), ("\udce9/0.cls", b"cow")),
        Wanted(exclude=("ant", "bee")),
    )
    with pytest.raises(RequestError, match="cannot decode image"):
        ImageTable.decode(train, 8, tmp_path / "cache")


def test_a_missing_shard_and_an_empty_one(tmp_path):
    written.tars(tmp_path)
    written.tar_file(tmp_path / "train-000002.tar", [])
    train, _ = read_any(tmp_path, Wanted())
    assert train.notes[0].endswith("train-000002.tar has no samples") and len(train.labels) == 6
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(RequestError, match="a file of the split 'train' is missing in .*: number 1 .2 of 3 are there"):
        read_any(tmp_path, Wanted())


def test_shards_that_disagree_are_named(tmp_path):
    written.tar_file(tmp_path / "train-000000.tar", [("0.png", PNG), ("0.cls", b"1")])
    written.tar_file(tmp_path / "train-000001.tar", [("1.png", PNG), ("1.cls", b"ant")])
    written.tar_file(tmp_path / "test-000000.tar", written.samples("test"))
    with pytest.raises(
        RequestError, match="train-000001.tar: the label has text, but whole numbers in train-000000.tar"
    ):
        read_any(tmp_path, Wanted())


def test_a_truncated_tar_is_named_wherever_it_ends(tmp_path):
    file = written.tars(tmp_path) / "train-000000.tar"
    good = file.read_bytes()
    end = max(i for i in range(len(good)) if good[i])
    for length in (0, 100, 512, 1000, 1024, 4096, end, end // 512 * 512 + 512):
        file.write_bytes(good[:length])
        with pytest.raises(RequestError, match="train-000000.tar (is empty|is truncated|cannot be read as a tar file)"):
            read_any(tmp_path, Wanted())
    file.write_bytes(good)
    train, _ = read_any(tmp_path, Wanted())
    file.write_bytes(good[:1000])
    with pytest.raises(RequestError, match="train-000000.tar is truncated"):
        train.read(3)
