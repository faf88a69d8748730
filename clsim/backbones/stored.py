"""Weights in files: the bundled ones and users' own files."""

from pathlib import Path

import torch
from torch import Tensor

from clsim.errors import RequestError

WEIGHTS = Path(__file__).parent / "weights"


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file, or from a PyTorch file of plain tensors."""
    if not file.is_file():
        raise RequestError(f"no weights file {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise many types of errors
        raise RequestError(f"cannot read weights from {file}: {error}") from error
    weights: dict[str, Tensor] = tensors.get("state_dict", tensors.get("model", tensors))
    return weights


def load_into(model: torch.nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Copy weights into the model; extra weights, e.g. of a classifier's head, are ignored.

    Raises RequestError if a weight is missing or has another shape.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in weights]
    wrong = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing or wrong:
        what = f"lacks {missing[0]!r}" if missing else f"has another shape for {wrong[0]!r}"
        raise RequestError(f"the weights of {origin} do not fit this backbone: the file {what}")
    model.load_state_dict({key: weights[key] for key in wanted})


def no_weights(name: str, error: Exception) -> RequestError:
    """The error for unavailable weights, with one message for all causes: no network, unknown tag, missing file."""
    return RequestError(
        f"the weights of {name!r} are not available here ({type(error).__name__}): run once with network access "
        f"(they are kept in the Hub's cache), or give a local file with --weights FILE"
    )


def require_multiple(name: str, image_size: int, patch: int) -> None:
    """Raises RequestError unless square patches of `patch` pixels tile an image of that side."""
    if image_size < patch or image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise RequestError(
            f"{name} reads patches of {patch}x{patch} pixels, which do not divide --image-size {image_size}; "
            f"{below} and {below + patch} are possible"
        )
