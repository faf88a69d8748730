"""What happens in a run, and who may answer: EVENTS, Part and State. Imports nothing of clsim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clsim.data.batches import Batch
    from clsim.data.streams import Experience, Info

# In the order in which they are raised; names and order are Avalanche's.
EVENTS = (
    "before_training",
    "before_training_exp",
    "before_training_epoch",
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
    "after_training_epoch",
    "after_training_exp",
    "before_eval",
    "before_eval_exp",
    "after_eval_exp",
    "after_eval",
    "after_training",
)


class Part:
    """Something that answers events: a memory, a regulariser, a recorder; a strategy is one, too.

    A handler is a method named after an event; it takes the State. A method that begins with `before_` or `after_`
    and names no event raises TypeError when the class is made. Whoever keeps something between experiences
    returns it from `state` and takes it back in `load`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith(("before_", "after_")) and name not in EVENTS:
                raise TypeError(f"{cls.__name__}.{name} names no event; the events are: {', '.join(EVENTS)}")

    @property
    def stored_bytes(self) -> int:
        """Bytes that it keeps of earlier experiences: images, logits, copies and importances of weights."""
        return 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: a tree of dicts and lists with tensors and JSON values."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""


@dataclass
class State:
    """Where the run stands. Handlers read it, and may change the fields marked (*) at the events named."""

    learner: torch.nn.Module  # tower, tuner and head: (Batch) -> (B, num_classes) logits
    info: Info
    seed: int
    experience: Experience | None = None
    trained: int = 0  # experiences finished
    seen: tuple[int, ...] = ()  # classes met so far, those of `experience` included; sorted
    epoch: int = 0  # within the experience
    step: int = 0  # updates since the run began
    exp_steps: int = 0  # updates that this experience will take
    exp_first: int = 0  # `step` at its first
    optimizer: torch.optim.Optimizer | None = None
    rows: NDArray[np.int64] | None = None  # rows of the training table in this batch, from the stream
    replay: NDArray[np.int64] | None = None  # (*) before_training_iteration: rows to learn beside them
    batch: Batch | None = None
    logits: torch.Tensor | None = None  # (B, num_classes), unmasked
    loss: torch.Tensor | None = None  # (*) before_backward: a scalar; regularisers add to it
    correct: list[list[int | None]] = field(default_factory=list)  # the counts so far, see clsim.metrics
    total: list[int] = field(default_factory=list)
    confusion: NDArray[np.int64] | None = None  # (K,K) counts, class by prediction, of the target in adaptation
    before: bool = False  # whether the first row of `correct` was measured before any training
    metrics: dict[str, float | None] = field(default_factory=dict)  # of `correct`; set before after_eval
    mask: str = "seen"  # classes that the training loss tells apart: the strategy's field
    clean_batches: Callable[[], Iterator[Batch]] | None = None  # the experience once, in order, not augmented
    replay_batch: Callable[[NDArray[np.int64], str], Batch] | None = None  # rows, augmented from the stream so called
    # the learner's float32 logits of a batch in the run's precision, with other weights for some names if given
    forward: Callable[[Batch, Mapping[str, torch.Tensor] | None], torch.Tensor] | None = None
    log: Callable[[str, Any], None] = lambda name, value: None  # keep a number or a list of numbers under a name

    @property
    def progress(self) -> float:
        """How much of the experience's training is done, from 0 to 1."""
        return (self.step - self.exp_first) / self.exp_steps if self.exp_steps else 0.0
