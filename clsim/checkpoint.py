"""States on disk: trees of tensors and plain values as one safetensors file and one JSON file, no pickle.

The JSON file contains the name and the digest of its tensors' file, and a digest of itself. It is written last and
gets its final name by one rename. So if the process is killed or the disk is full, the last complete state can still
be read.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clsim.errors import RequestError, writing
from clsim.sealed import CHANGED, file_digest, sealed, unsealed

TENSOR, ITEMS = "__tensor__", "__items__"
PLAIN = {int, float, str, bool, type(None)}


def save(folder: Path, tree: Any, name: str = "state") -> None:
    """Write `tree` (dicts, lists, tensors, JSON values) as `folder/name.json` and a tensors file next to it.

    Raises WriteFailed with the file's name, also if the folder that `folder` is in was removed.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)  # not its parents: who removed them did not want this state
    tensors: dict[str, Tensor] = {}
    plain = _strip(tree, tensors)
    index = folder / f"{name}.json"
    previous = _tensors_file(index)
    # two names in turn: never write to the file that the present index uses
    file = f"{name}.b.safetensors" if previous == f"{name}.a.safetensors" else f"{name}.a.safetensors"
    part = folder / f"{file}.part"
    with writing(part, sum(tensor.nbytes for tensor in tensors.values())):
        _save_file(tensors, part)
        _sync(part)
        part.replace(folder / file)
    write_text(index, sealed({"tensors": file, "tensors_digest": file_digest(folder / file), "tree": plain}))
    if previous is not None:
        (folder / previous).unlink(missing_ok=True)


def load(folder: Path, name: str = "state") -> Any:
    """The tree that `save` wrote. Raises FileNotFoundError if there is none, RequestError if it is broken."""
    path = folder / f"{name}.json"
    try:
        index = unsealed(path.read_text(encoding="utf-8"))
        path, tree = folder / index["tensors"], index["tree"]
        if "tensors_digest" in index and index["tensors_digest"] != file_digest(path):  # earlier versions wrote none
            raise ValueError(CHANGED)
        return _fill(tree, load_file(path))
    except FileNotFoundError as error:
        if path.suffix == ".json":
            raise
        raise RequestError(f"{path} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RequestError(f"{path} is broken: {type(error).__name__}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all. Raises WriteFailed."""
    part = path.with_name(f"{path.name}.part")
    with writing(path, len(text)):
        part.write_text(text, encoding="utf-8")
        _sync(part)
        part.replace(path)


def _tensors_file(index: Path) -> str | None:
    """The name of the tensors' file of the state that is there; None if there is none, or none that can be read."""
    try:
        return Path(json.loads(index.read_text(encoding="utf-8"))["tensors"]).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors' `save_file` with errors of the system as OSError."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _strip(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by its number; the tensors, copied, go into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _strip(item, tensors) for key, item in value.items()}
        return {ITEMS: [[key, _strip(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        # counts of long streams are many lists of plain values, saved after each experience
        return list(value) if PLAIN.issuperset(map(type, value)) else [_strip(item, tensors) for item in value]
    return value


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        if ITEMS in value:
            return {key: _fill(item, tensors) for key, item in value[ITEMS]}
        return {key: _fill(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, tensors) for item in value]
    return value
