"""CIFAR-10 and CIFAR-100 as torchvision downloads them: pickles of arrays, read without running code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.data.arrays import image_reader, require_one_each
from clsim.data.labels import Declared, array_values, listed_values
from clsim.data.raw import Raw
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz")
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}
LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
NAMES = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}  # file, key
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def cifar_in(folder: Path) -> str:
    """ "cifar10" or "cifar100" if a folder has its files, complete or not; otherwise empty."""
    return next((which for which, (meta, _) in NAMES.items() if _is_set(folder, which, meta)), "")


def _is_set(folder: Path, which: str, meta: str) -> bool:
    names = [meta, *FILES[which]["train"], *FILES[which]["test"]]
    return folder.name == FOLDERS[which] or all((folder / name).is_file() for name in names)


def read_cifar(folder: Path) -> list[Raw]:
    """Training and test images. Raises RequestError that names a file that is missing, damaged, or has code in it."""
    which = cifar_in(folder)
    file, key = NAMES[which]
    names = _loaded(folder / file).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{shown(folder / file)} has no list of text {key!r}")
    return [_split(folder, which, split, Declared(tuple(names))) for split in ("train", "test")]


def _split(folder: Path, which: str, split: str, declared: Declared) -> Raw:
    images, names, labels, files = [], [], [], []
    for name in FILES[which][split]:
        file = folder / name
        batch = _loaded(file)
        pixels = batch.get("data")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise RequestError(f"{shown(file)} has no array 'data' of N x 3072 bytes")
        values = _values(file, LABELS[which], batch.get(LABELS[which]))
        require_one_each(file, "'data'", len(pixels), f"{LABELS[which]!r}", len(values))
        images.append(pixels)
        labels.append((file, values))
        names += [f"{name}[{i}]" for i in range(len(pixels))]
        files.append(file)
    every: NDArray[np.uint8] = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Raw(
        split=split,
        read=image_reader(shown(folder), every),
        names=names,
        labels=labels,
        what=repr(LABELS[which]),
        files=files,
        settings=(which, split),
        declared=declared,
        notes=(f"the files of {folder.name}, as torchvision downloads them",),
    )


def _values(file: Path, key: str, given: Any) -> NDArray[Any]:
    where = f"{shown(file)}: {key!r}"
    if isinstance(given, np.ndarray):
        return array_values(where, given)
    if not isinstance(given, list):
        raise RequestError(f"{where} is no list of labels")
    return listed_values(where, given)


def _loaded(file: Path) -> dict[str, Any]:
    """A pickled dictionary. Raises RequestError, also if the pickle needs more than arrays and text."""
    require_file(file)
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()  # Python 2 wrote them
    except _Refused as error:
        raise RequestError(
            f"{shown(file)} is a pickle that asks for {error}, and could run code: it is not read; "
            "get the files of CIFAR from their authors"
        ) from error
    except Exception as error:  # damaged pickles end in many kinds of errors
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise RequestError(f"{shown(file)} cannot be read as a pickle; it is truncated or damaged ({why})") from error
    if not isinstance(content, dict):
        raise RequestError(f"{shown(file)} has no dictionary, but a {type(content).__name__}")
    return {str(key): value.value if isinstance(value, _Array) else value for key, value in content.items()}


class _Refused(pickle.UnpicklingError):
    """The name of what a pickle asks for."""


class _Unpickler(pickle.Unpickler):
    """Makes arrays, text, bytes, numbers, lists and dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the few functions that arrays need, written here; nothing is imported for a pickle."""
        try:
            return _ALLOWED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refused."""
        raise _Refused(f"a persistent object {str(pid)[:40]!r}")


class _Type:
    """A pickled NumPy type: a number of a fixed size."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in NUMBERS:
            raise _Refused(f"an array of type {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.numpy = self.numpy.newbyteorder("=" if state[1] == "|" else state[1])


class _Array:
    """A pickled array. NumPy's own way to set it up trusts its input, so it is not used."""

    value: NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _from_buffer(data, kind, shape, "F" if fortran else "C").value


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.value = np.frombuffer(_raw(data), dtype=kind.numpy).reshape(shape, order=order)
    return made


def _scalar(kind: Any, data: Any) -> int | float:
    number: int | float = np.frombuffer(_raw(data), dtype=kind.numpy)[0].item()
    return number


def _raw(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2's text is bytes


def _latin1(text: Any, encoding: Any) -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return bytes(str(text), "latin1")


# what arrays are made of, with functions of this file in place of NumPy's
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "numpy.ndarray",  # only as an argument
    ("numpy", "dtype"): lambda code, *flags: _Type(code),
    ("_codecs", "encode"): _latin1,
}
