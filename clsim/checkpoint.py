"""States on disk: trees of tensors and plain values as one safetensors file and one JSON file, no pickle.

The JSON file contains the name of its tensors' file. It is written last and gets its final name by one rename. So if
the process is killed or the disk is full, the last complete state can still be read.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSOR, ITEMS = "__tensor__", "__items__"


def save(folder: Path, tree: Any, name: str = "state") -> None:
    """Write `tree` (dicts, lists, tensors, JSON values) as `folder/name.json` and a tensors file next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    plain = _strip(tree, tensors)
    index = folder / f"{name}.json"
    previous = json.loads(index.read_text())["tensors"] if index.exists() else None
    # two names in turn: never write to the file that the present index uses
    file = f"{name}.b.safetensors" if previous == f"{name}.a.safetensors" else f"{name}.a.safetensors"
    save_file(tensors, folder / f"{file}.part")
    _sync(folder / f"{file}.part")
    (folder / f"{file}.part").replace(folder / file)
    write_text(index, json.dumps({"tensors": file, "tree": plain}))
    if previous is not None:
        (folder / previous).unlink(missing_ok=True)


def load(folder: Path, name: str = "state") -> Any:
    """The tree that `save` wrote. Raises FileNotFoundError if there is none."""
    index = json.loads((folder / f"{name}.json").read_text())
    return _fill(index["tree"], load_file(folder / index["tensors"]))


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    _sync(part)
    part.replace(path)


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
        return [_strip(item, tensors) for item in value]
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
