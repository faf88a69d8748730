"""CIFAR's pickles: read without running code, refused by name where they need more than arrays and text."""

import os
import pickle
import shutil

import numpy as np
import pytest
import written

from clsim.data.cifar import cifar_in, read_cifar
from clsim.errors import RequestError


class Evil:
    """A pickle of it asks for a function and its arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def folder(tmp_path):
    return written.cifar10(tmp_path) / "cifar-10-batches-py"


def change(file, **values):
    """Pickle the batch again with other values."""
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | values, 2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(folder, protocol):
    for file in folder.iterdir():
        file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()), protocol))
    train, test = read_cifar(folder)
    assert np.concatenate([values for _, values in train.labels]).tolist() == written.LABELS["train"]
    assert test.read(0).endswith(written.pixels("test", 32)[0].tobytes())
    assert (train.split, train.declared.names) == ("train", written.NAMES)


def test_a_pickle_of_python_2_is_read(folder):
    # Python 2 writes bytes as text: opcodes that Python 3 does not write
    pixels = written.pixels("test", 32).transpose(0, 3, 1, 2).reshape(3, 3072)

    def text(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    kind = b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntb"
    state = b"(I1\n(I3\nI3072\nt" + kind + b"I00\n" + text(pixels.tobytes()) + b"tb"
    batch = b"(dU\x04data" + array + state + b"sU\x06labels(lI2\naI1\naI0\nas."
    (folder / "test_batch").write_bytes(batch)
    _, test = read_cifar(folder)
    assert test.labels[0][1].tolist() == [2, 1, 0] and test.read(1).endswith(written.pixels("test", 32)[1].tobytes())


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch run",), r"(posix|nt)\.system"),
        (eval, ("open('run', 'w')",), r"\w+\.eval"),
        (shutil.copyfile, ("/etc/hostname", "run"), r"shutil\.copyfile"),
        (np.save, ("run", [1]), r"numpy\.save"),
        (np.load, ("run",), r"numpy\.load"),
        (pickle.loads, (b"N.",), r"\w+\.loads"),
        (getattr, (os, "system"), r"\w+\.getattr"),
    ],
)
def test_a_pickle_that_runs_code_is_refused_by_name_and_not_run(
    folder, tmp_path, monkeypatch, protocol, function, arguments, name
):
    monkeypatch.chdir(tmp_path)
    if function is getattr:
        arguments = ("text", "upper")
    for file in ("data_batch_2", "batches.meta"):
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(pickle.dumps({"data": Evil(function, *arguments)}, protocol))
        with pytest.raises(
            RequestError, match=rf"{file} is a pickle that asks for {name}, and could run code: it is not"
        ):
            read_cifar(folder)
        (folder / file).write_bytes(kept)
    assert not (tmp_path / "run").exists()


def test_arrays_of_objects_and_strange_arrays_are_refused(folder):
    file = folder / "test_batch"
    for values, message in (
        ({"data": np.array([{}], dtype=object)}, "test_batch is a pickle that asks for an array of type 'O8'"),
        ({"data": np.zeros((3, 100), np.uint8)}, "test_batch has no array 'data' of N x 3072 bytes"),
        ({"data": np.zeros((3, 3072))}, "test_batch has no array 'data' of N x 3072 bytes"),
        ({"data": [1, 2]}, "test_batch has no array 'data'"),
        ({"labels": [0, 1]}, "test_batch: 'data' has 3 images, but 'labels' has 2 labels"),
        ({"labels": [0, 1, None]}, "test_batch: 'labels' has no value in 1 of 3 rows, first in row 2"),
        ({"labels": [0, 1, "a"]}, "test_batch: 'labels' has labels of type int and str; labels are whole numbers or"),
        ({"labels": None}, "test_batch: 'labels' is no list of labels"),
    ):
        kept = file.read_bytes()
        change(file, **values)
        with pytest.raises(RequestError, match=message):
            read_cifar(folder)
        file.write_bytes(kept)
    change(file, labels=np.array([2, 1, 0]))
    assert read_cifar(folder)[1].labels[0][1].tolist() == [2, 1, 0]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [1, 2]}))
    with pytest.raises(RequestError, match="batches.meta has no list of text 'label_names'"):
        read_cifar(folder)
    (folder / "batches.meta").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(RequestError, match="batches.meta has no dictionary, but a list"):
        read_cifar(folder)


def test_a_missing_batch_is_named(folder, tmp_path):
    (folder / "data_batch_4").unlink()
    assert cifar_in(folder) == "cifar10" and not cifar_in(tmp_path)
    with pytest.raises(RequestError, match="no such file: .*data_batch_4"):
        read_cifar(folder)
