"""Code shared by regularisers, which are parts that add a term to the loss."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clsim.events import State


def require_weight(name: str, value: float) -> None:
    """Raises ValueError if a term's weight is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, not {value}")


def cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of (B,K) logits and (B,) labels, only over the classes that are true in `classes` (K,)."""
    return nn.functional.cross_entropy(logits.masked_fill(~classes, -torch.inf), labels)


def stream_classes(s: State) -> tuple[int, ...]:
    """The classes that the training loss's softmax includes for images of the stream."""
    return {"current": s.experience.classes, "seen": s.seen, "all": tuple(range(s.info.num_classes))}[s.mask]


def trained(learner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


def __getattr__(name: str) -> Any:
    # old names of the parts in this module; late, because their files import this one
    if name in ("Ewc", "Lwf", "distillation"):
        from clsim.parts import ewc, lwf

        return getattr(ewc if name == "Ewc" else lwf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
