"""Weights in files: the bundled ones and users' own files. Only tensors are read; no code of a file is run."""

import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clsim.errors import RequestError
from clsim.hub import why

WEIGHTS = Path(__file__).parent / "weights"
TOLERANCE = 1e-3  # relative difference between a tower's features and the library's
SHOWN = 4  # names of tensors in a message

# what belongs to the classifier or to pretraining: features do not depend on it
HEAD = re.compile(
    r"(\w*head\w*|heads|fc|\w*classifier|pre_logits|pooler|predictor|decoder\w*|mask_token)([./]|$)"
    r"|(.*\.)?(position_ids|attn_mask|input_resolution|context_length|vocab_size)$"
)
# entries of a checkpoint that have the weights, best first; those of an average come last, as one is chosen on purpose
ENTRIES: tuple[str, ...] = (
    "state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "teacher",
    "student",
)
ENTRIES += ("module", "target_encoder", "encoder", "backbone", "net", "network", "params", "weights")
# configurations that checkpoints often have next to the weights: read as empty objects without any behaviour
HARMLESS = re.compile(r"(argparse\.Namespace|omegaconf\.\S+|pathlib\.\w*Path|yacs\.config\.CfgNode|typing\.Any)$")


class _Empty:
    """Takes the place of a configuration; it keeps what it is given, and does nothing."""

    def __init__(self, *values: object, **named: object) -> None:
        self.__dict__.update(named)


def say(text: str) -> None:
    """One line on the error output about something that the user should know."""
    print(f"clsim: {text}", file=sys.stderr)


def listed(names: Iterable[str], most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, PyTorch (also TorchScript), or NumPy's npz.

    Raises RequestError if the file is none of these, is incomplete, or has tensors that are not finite numbers.
    """
    if not file.exists():
        raise RequestError(f"no weights file {file}")
    if not file.is_file():
        raise RequestError(f"cannot read weights from {file}: it is not a regular file")
    try:
        stored = _content(file)
    except RequestError:
        raise
    except Exception as error:  # broken files raise many types of errors
        raise RequestError(f"cannot read weights from {file}: {_reason(file, error)}") from error
    weights = _tensors(stored, file)
    _require_numbers(weights, file)
    return weights


def _content(file: Path) -> Any:
    """What the file has, by the kind of its content."""
    with file.open("rb") as stream:
        start = stream.read(16)
    if not start:
        raise RequestError(f"cannot read weights from {file}: the file is empty")
    if file.suffix == ".safetensors" or start[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return _numpy(file)
        if any(name.endswith("/constants.pkl") for name in names):
            from clsim.backbones.torchscript import read_archive

            return read_archive(file)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        empty: list[Any] = [(_Empty, name) for name in unsafe if HARMLESS.match(name)]
        with torch.serialization.safe_globals(empty):
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True)


def _numpy(file: Path) -> dict[str, Tensor]:
    """The arrays of an npz file; names have slashes."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _reason(file: Path, error: Exception) -> str:
    """Why a file cannot be read, in one line, without advice that clsim cannot follow."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named or "weights_only" in str(error).lower():
        what = f" ({named.group(1)})" if named else ""
        return (
            f"it is not a file of weights, or it has Python objects{what}, and clsim reads nothing but tensors; "
            "save model.state_dict() alone"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = "" if isinstance(error, KeyError) else f": {str(error).strip().partition(chr(10))[0][:120]}"
    return f"it is incomplete or not a file of weights ({type(error).__name__}{first})"


def _tensors(stored: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in what a file has; other entries of a checkpoint (an optimizer, counters) are left out."""
    for _ in range(4):
        if not isinstance(stored, dict):
            raise RequestError(
                f"cannot read weights from {file}: it has a {type(stored).__name__}, not tensors by name (a state dict)"
            )
        entries = [name for name in ENTRIES if isinstance(stored.get(name), dict)]
        if not entries:
            break
        others = [name for name in entries[1:] if name not in ("params", "weights")]
        if others:
            say(f"{file.name} has the weights {listed(entries)}; {entries[0]!r} is used")
        stored = stored[entries[0]]
    weights = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    if not weights:
        raise RequestError(
            f"cannot read weights from {file}: no tensors in it; it has {listed(map(str, stored)) or 'nothing'}"
        )
    return weights


def _require_numbers(weights: dict[str, Tensor], file: Path) -> None:
    """Raises RequestError for tensors of integers and for numbers that are not finite; heads may have any."""
    used = {name: tensor for name, tensor in weights.items() if not HEAD.match(name)}
    counts = ("num_batches_tracked", "relative_position_index")
    whole = [k for k, v in used.items() if not v.is_floating_point() and not k.endswith(counts)]
    if whole:
        raise RequestError(
            f"cannot use the weights of {file}: {listed(whole)} of type {str(used[whole[0]].dtype)[6:]}, "
            "where floating-point numbers are expected"
        )
    broken = [k for k, v in used.items() if v.is_floating_point() and not v.float().isfinite().all()]
    if broken:
        raise RequestError(f"cannot use the weights of {file}: NaN or infinite numbers in {listed(broken)}")


def load_into(model: torch.nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Copy weights into the model. The weights of a classifier's head are left out; all others must have a place.

    Raises RequestError, with the names, if weights are missing, have no place, or have another shape or type.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    extra = [name for name in weights if name not in wanted and not HEAD.match(name)]
    both = [name for name in wanted if name in weights]
    wrong = [name for name in both if weights[name].shape != wanted[name].shape]
    types = [name for name in both if weights[name].is_floating_point() != wanted[name].is_floating_point()]
    faults = []
    if missing:
        faults.append(f"lacks {listed(missing)}")
    if wrong:
        here, there = tuple(wanted[wrong[0]].shape), tuple(weights[wrong[0]].shape)
        faults.append(f"has another shape for {listed(wrong)} ({there}, not {here})")
    if extra:
        faults.append(f"has {listed(extra)}, for which the backbone has no place")
    if types:
        faults.append(f"has another type for {listed(types)}")
    if faults:
        raise RequestError(f"the weights of {origin} do not fit this backbone: the file {'; it '.join(faults)}")
    model.load_state_dict({name: weights[name] for name in wanted})


def no_weights(name: str, error: Exception) -> RequestError:
    """The error for weights that cannot be downloaded."""
    return RequestError(
        f"the weights of {name!r} cannot be downloaded: {why(error)}. Run once with network access (they are kept in "
        f"the Hub's cache), or give a local file with --weights FILE"
    )


def require_multiple(name: str, image_size: int, patch: int) -> None:
    """Raises RequestError unless square patches of `patch` pixels tile an image of that side."""
    if image_size < patch or image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise RequestError(
            f"{name} reads patches of {patch}x{patch} pixels, which do not divide --image-size {image_size}; "
            f"{below} and {below + patch} are possible"
        )


def require_equal(name: str, what: str, ours: Tensor, theirs: Tensor) -> None:
    """Raises RequestError if features of an image or a text differ from the library's by more than 1e-3 of them."""
    if not theirs.isfinite().all():
        raise RequestError(f"the {what} features of {name} are not finite numbers: its weights are broken")
    apart = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)) if ours.shape == theirs.shape else 1.0
    if not apart <= TOLERANCE:
        raise RequestError(
            f"{name} cannot be used: the {what} features of its tower differ from those of the library by {apart:.1%}"
        )
