"""The tensors of a TorchScript archive, e.g. of OpenAI's CLIP. The program in the archive is neither read nor run."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


PLAIN = {  # what wraps values, and is replaced with the value
    ("collections", "OrderedDict"): dict,
    ("torch", "device"): str,
    ("torch._utils", "_rebuild_parameter"): lambda value, *_unused: value,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _unused: value,
}


class _Module:
    """A module of the archive: its attributes, and nothing of its program."""


class _Reader(pickle.Unpickler):
    """Reads tensors, modules as plain attributes, and lists of numbers; every other name is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Module,), {})
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not weights")

    def persistent_load(self, pid: Any) -> Tensor:
        """The elements of a storage, read once."""
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0)
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_unused: object) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def read_archive(file: Path) -> dict[str, Tensor]:
    """The archive's parameters and buffers by name. Raises UnpicklingError for anything that is not weights."""
    with zipfile.ZipFile(file) as archive:
        pickled = min((name for name in archive.namelist() if name.endswith("/data.pkl")), key=len)
        top = _Reader(archive, pickled.removesuffix("data.pkl")).load()
    found: dict[str, Tensor] = {}
    _collect(top, "", found)
    return found


def _collect(module: object, path: str, found: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[path + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{path}{name}.", found)
