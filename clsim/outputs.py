"""Outputs: what a learner returns for a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Everything that a learner computed for a batch of B images. A strategy may extend it with its own fields.

    A learner returns this, or only the logits. It never stores results on itself: it is called for several purposes (a
    step, a teacher, a memory, an evaluation), and each caller needs the results of its own call.
    """

    logits: Tensor  # (B, num_classes)
    features: Tensor | None = None  # (B,D), the input of the classifier, if there is one
    task: Tensor | None = None  # (B,) index of the experience that the method detected for each image


def as_outputs(returned: Outputs | Tensor) -> Outputs:
    """A learner's result as Outputs."""
    return returned if isinstance(returned, Outputs) else Outputs(returned)
