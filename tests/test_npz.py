"""Arrays in .npz files: names, shapes, types, and what is refused."""

import pickle

import numpy as np
import pytest
import written

from clsim.data.formats import read_any
from clsim.data.raw import Wanted
from clsim.errors import RequestError


def save(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def both(images, labels):
    """The same arrays for both splits."""
    return {f"x_{split}": images for split in ("train", "test")} | {f"y_{split}": labels for split in ("train", "test")}


X = written.pixels("test")
Y = np.array([0, 1, 2])


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("images_training", "targets_training", "images_validation", "targets_validation"),
    ],
)
def test_arrays_have_the_usual_names(tmp_path, names):
    file = save(tmp_path, **dict(zip(names, (X, Y, X[:, ::-1], Y), strict=True)))
    train, test = read_any(file, Wanted())
    assert train.class_names == ("0", "1", "2") and train.read(1) != test.read(1)
    assert train.read(1).endswith(X[1].tobytes()) and train.fingerprint != test.fingerprint
    assert train.notes[0] == f"images are array {names[0]!r}, labels array {names[1]!r}"


def test_medmnists_three_splits_and_other_names(tmp_path):
    arrays = {f"{split}_images": X for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": Y[:, None] for split in ("train", "val", "test")}
    file = save(tmp_path, **arrays)
    train, test = read_any(file, Wanted())
    assert test.split == "test" and train.left_out == {"other splits": ("val",)}
    assert read_any(file, Wanted(test_split="val"))[1].split == "val"
    many = {"arr_0": np.repeat(X, 40, axis=0), "arr_1": np.repeat(["bee", "ant", "cow"], 40)}
    with pytest.raises(
        RequestError, match="a.npz has the arrays arr_0, arr_1; name the arrays x_train, .* scenario.image"
    ):
        read_any(save(tmp_path, **many), Wanted())
    train, test = read_any(tmp_path, Wanted("arr_0", "arr_1"))
    assert train.class_names == ("ant", "bee", "cow") and len(train.labels) + len(test.labels) == 120
    with pytest.raises(RequestError, match="a.npz has no array 'arr_2'; there are: arr_0, arr_1"):
        read_any(tmp_path, Wanted("arr_0", "arr_2"))


def test_a_file_for_each_split_and_domains(tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=X, labels=Y, domains=["art", "photo", "art"])
    train, test = read_any(tmp_path, Wanted(domains=("photo", "art")))
    assert (train.split, test.split) == ("train", "test")
    assert train.domain_names == ("photo", "art") and train.domains.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (X.reshape(3, -1), Y, r"array 'x_train' has the shape \(3, 48\); images are \(N,H,W\)"),
        (np.zeros((3, 5, 5, 2), np.uint8), Y, r"has the shape \(3, 5, 5, 2\)"),
        (X.astype(float) - 300, Y, "has pixels from -.* to .*; floats are 0 to 1 or 0 to 255"),
        (np.full((3, 4, 4), np.nan), Y, "has pixels from nan to nan; floats"),
        (X.astype(np.int64) + 300, Y, "has pixels from 3.* to .*; int64 is 0 to 255"),
        (X.astype(np.uint16), Y, "has 16-bit pixels up to 25. only, which is nearly black; multiply"),
        (X.astype(complex), Y, "has pixels of type complex128"),
        (X, Y[:2], "'x_train' has 3 images, but 'y_train' has 2 labels"),
        (X, np.eye(3, dtype=int), r"array 'y_train' has the shape \(3, 3\); labels are one number or one text"),
        (X, Y.astype(float), "array 'y_train' has labels of type float64; labels are whole numbers or text"),
        (X, Y - 1, "array 'y_train' has the label -1; labels below 0"),
        (X, Y.astype(np.uint64) + 2**63, "array 'y_train' has a number that is too large for a label"),
        (X, np.array(["a", "", "b"]), "array 'y_train' has no value in 1 of 3 rows, first in row 1"),
    ],
)
def test_arrays_that_are_none_are_refused_with_file_and_name(tmp_path, images, labels, message):
    with pytest.raises(RequestError, match=f"a.npz: .*{message}|{message}"):
        read_any(save(tmp_path, **both(images, labels)), Wanted())


def test_labels_are_numbers_with_gaps_or_text(tmp_path):
    for labels, names in (([1, 2, 3], "123"), ([5, 10**9, 7], ("5", "7", "1000000000")), (["c", "a", "b"], "abc")):
        train, _ = read_any(save(tmp_path, **both(X, np.array(labels))), Wanted())
        assert train.class_names == tuple(names)


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "run"), "w")

    file = save(tmp_path, **both(X, np.array([Evil(), 1, 2], dtype=object)))
    with pytest.raises(
        RequestError, match="a.npz cannot be read as .npz: it has arrays of Python objects, which could"
    ):
        read_any(file, Wanted())
    file.write_bytes(pickle.dumps(Evil()))  # NumPy reads pickles, too
    (tmp_path / "run").unlink(missing_ok=True)
    with pytest.raises(RequestError, match="a.npz cannot be read as .npz"):
        read_any(file, Wanted())
    assert not (tmp_path / "run").exists()
    with file.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(RequestError, match="a.npz has one array without a name"):
        read_any(file, Wanted())


def test_a_header_that_promises_too_much_does_not_take_memory(tmp_path):
    import zipfile

    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in both(X, Y):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(RequestError, match="a.npz (says that it has arrays that do not fit|cannot be read)"):
        read_any(tmp_path / "a.npz", Wanted())
