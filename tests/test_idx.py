"""MNIST's idx files and SVHN's .mat files, as torchvision downloads them."""

import gzip

import numpy as np
import pytest
import scipy.io
import written

from clsim.data.formats import read_any
from clsim.data.idx import idx_in, read_idx
from clsim.data.raw import Wanted
from clsim.data.svhn import read_svhn
from clsim.errors import RequestError


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_packed_or_not_and_from_any_folder_of_them(tmp_path, packed):
    written.idx(tmp_path, packed=packed)
    for place in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        train, test = read_any(place, Wanted())
        assert (train.split, test.split) == ("train", "test")
        assert train.labels.tolist() == written.LABELS["train"]
        assert test.read(2).endswith(written.pixels("test", 28, grey=True)[2].tobytes())
    assert train.notes[0] == "the idx files of MNIST, as torchvision downloads them"


def test_fashion_mnist_and_kmnist_have_their_class_names(tmp_path):
    for name, first in (("FashionMNIST", "T-shirt/top"), ("KMNIST", "o")):
        train = read_any(written.idx(tmp_path / name, name), Wanted(exclude=(first,)))[0]
        assert len(train.class_names) == 9 and first not in train.class_names
    assert read_any(tmp_path / "FashionMNIST", Wanted())[0].class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "train-images-idx3-ubyte",
            lambda data: data[:-1],
            "is truncated or damaged: it has 4703 bytes for 4704 values",
        ),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "it has more bytes for 4704 values"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "is no idx file of bytes with 3 dimensions"),
        ("train-images-idx3-ubyte", lambda data: data[:4] + b"\xff" * 12 + data[16:], "it has 4704 bytes for 79228"),
        ("t10k-labels-idx1-ubyte", lambda data: data[:2] + b"\x0d" + data[3:], "is no idx file of bytes with 1 dim"),
        (
            "t10k-labels-idx1-ubyte",
            lambda data: data[:7] + b"\2" + data[8:-1],
            "has 3 images, but t10k-labels.* has 2 l",
        ),
        ("t10k-labels-idx1-ubyte", lambda data: b"", "is empty: it has no bytes"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, file, change, message):
    path = written.idx(tmp_path) / "MNIST" / "raw" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RequestError, match=f"{file}.* {message}"):
        read_any(tmp_path, Wanted())


def test_a_missing_idx_file_and_a_damaged_gz_are_named(tmp_path):
    folder = written.idx(tmp_path, packed=True) / "MNIST" / "raw"
    file = folder / "train-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    for content in (good[:-4], good[:10], b"\0" * 30, gzip.compress(b"") + good[:5]):
        file.write_bytes(content)
        with pytest.raises(RequestError, match="train-labels-idx1-ubyte.gz is (truncated or damaged|no idx file)"):
            read_idx(folder)
    file.unlink()
    with pytest.raises(RequestError, match="raw has no file train-labels-idx1-ubyte, or .gz"):
        read_any(tmp_path, Wanted())
    assert idx_in(tmp_path) is None


def test_svhns_tenth_digit_is_0(tmp_path):
    written.svhn(tmp_path)
    (tmp_path / "extra_32x32.mat").write_bytes(b"")
    train, _ = read_any(tmp_path, Wanted())
    assert train.class_names == ("0", "1", "2") and train.labels.tolist() == written.LABELS["train"]
    assert train.left_out == {"not read": (str(tmp_path / "extra_32x32.mat"),)}


def test_damaged_mat_files_are_named(tmp_path):
    file = written.svhn(tmp_path) / "test_32x32.mat"
    good = file.read_bytes()
    for content in (good[:200], good[:-10], b"MATLAB 5.0" * 50, b"\x89HDF\r\n\x1a\n" + bytes(500)):
        file.write_bytes(content)
        with pytest.raises(
            RequestError, match="test_32x32.mat (cannot be read as a .mat file; it is truncated|has no arr)"
        ):
            read_svhn(tmp_path)
    pixels = written.pixels("test", 32).transpose(1, 2, 3, 0)
    objects = np.empty(3, dtype=object)
    objects[:] = [[1], "a", {"b": 2}]
    for content, message in (
        ({"X": pixels}, "has no array 'y'"),
        ({"X": pixels, "y": [[1, 2]]}, r"array 'y' has the shape \(1, 2\)"),
        ({"X": pixels, "y": [[1], [2]]}, "'X' has 3 images, but 'y' has 2 labels"),
        ({"X": pixels[..., 0], "y": [[1]]}, r"array 'X' has the shape \(32, 32, 3\), not \(H,W,3,N\)"),
        ({"X": objects, "y": [[1]]}, "array 'X' has the shape"),
        ({"X": pixels, "y": objects[:, None]}, "array 'y' has"),
    ):
        scipy.io.savemat(file, content)
        with pytest.raises(RequestError, match=f"test_32x32.mat.* {message}"):
            read_svhn(tmp_path)
    file.unlink()
    with pytest.raises(RequestError, match="no such file: .*test_32x32.mat"):
        read_any(tmp_path, Wanted())
