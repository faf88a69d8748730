"""The events of a run and their handlers: EVENTS, Part, State and Step. At run time this imports nothing of clsim."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clsim.data.batches import Batch
    from clsim.data.streams import Experience, ExperienceInfo, StreamInfo
    from clsim.outputs import Outputs
    from clsim.tools import Tools

# Events of one update, in order: their handlers take a Step.
STEP_EVENTS = (
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
)
# All events in the order in which they are raised (Avalanche's names and order). Handlers of the others take a State.
EVENTS = (
    "before_training",
    "before_training_exp",
    "before_training_epoch",
    *STEP_EVENTS,
    "after_anytime_eval",  # ours: after an evaluation inside an experience (--eval-every)
    "after_training_epoch",
    "after_training_exp",
    "before_eval",
    "before_eval_exp",
    "after_eval_exp",
    "after_eval",
    "after_training",
)
# methods that clsim calls, with their arguments
CALLED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(EVENTS, ("s",)),
    "loss": ("s",),
    "fit": ("s",),
    "build": ("backbone", "info"),
    "begin": ("learner", "experience"),
    "epochs_for": ("experience",),
    "rows_for": ("s",),
    "experiences": ("stream",),
    "reads": (),
    "parts": (),
    "state": (),
    "load": ("state",),
}

T = TypeVar("T")


class Part:
    """A callback: a memory, a regulariser or a recorder with methods named after events (Avalanche: a plugin).

    A handler takes a Step if its event is one of STEP_EVENTS, else a State. Defining the class raises TypeError if a
    method's name begins with `before_` or `after_` but is no event, or if a method cannot take the arguments that clsim
    passes. A part saves its memory in `state` and restores it in `load`: a checkpoint may be written after any step.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if name.startswith(("before_", "after_")) and name not in EVENTS:
                raise TypeError(f"{cls.__name__}.{name} names no event; the events are: {', '.join(EVENTS)}")
            if name in CALLED and isinstance(value, FunctionType):
                _check_signature(cls.__name__, name, value)

    short: ClassVar[tuple[str, ...]] = ()  # fields of the short form: ("alpha", "size") allows `--with NAME:0.5:500`
    aliases: ClassVar[dict[str, dict[str, Any]]] = {}  # other names on the command line, and the fields they set
    adds_to_loss: ClassVar[bool] = False  # whether it adds a term to the training loss
    replays: ClassVar[bool] = False  # whether all that it does is to add images of a memory to training batches
    needs_earlier: ClassVar[bool] = False  # whether it changes nothing until an experience has been learned

    @property
    def stored_bytes(self) -> int:
        """Bytes that it keeps from earlier experiences: images, logits, copies and importances of weights."""
        return 0

    def state(self) -> dict[str, Any]:
        """Its content for a checkpoint: a tree of dicts and lists with tensors and JSON values."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def _check_signature(owner: str, name: str, method: FunctionType) -> None:
    """Raises TypeError if the method cannot be called with the arguments of CALLED."""
    given = CALLED[name]
    signature = inspect.signature(method)
    try:
        signature.bind(None, *given)
    except TypeError as error:
        wanted = ", ".join(("self", *given))
        raise TypeError(f"{owner}.{name}{signature} must take ({wanted}): {error}") from error


@dataclass
class State:
    """The state of a run, passed to the handlers of its events and to `Strategy.fit`.

    `experience` and `optimizer` exist only for some time; at other times they raise RuntimeError.
    """

    learner: torch.nn.Module  # tower, tuner and head: (Batch) -> Outputs or (B, num_classes) logits
    info: StreamInfo
    seed: int
    mask: str = "seen"  # classes included in the training loss's softmax: the strategy's field
    tools: Tools | None = None  # forward passes, batches, features, logging: use the methods below
    trained: int = 0  # number of finished experiences
    begun: tuple[ExperienceInfo, ...] = ()  # experiences begun, in order; resuming repeats `Strategy.begin` for each
    seen: tuple[int, ...] = ()  # classes seen so far, including the current experience's; sorted
    epoch: int = 0  # within the experience
    epoch_steps: int = 0  # updates done in this epoch
    step: int = 0  # updates since the run began
    exp_steps: int = 0  # updates that this experience will take
    exp_first: int = 0  # `step` at the first update of this experience
    correct: list[list[int | None]] = field(default_factory=list)  # the counts so far, see clsim.metrics
    total: list[int] = field(default_factory=list)
    task_correct: list[list[int | None]] = field(default_factory=list)  # images whose task was detected correctly
    anytime: list[dict[str, Any]] = field(default_factory=list)  # evaluations inside experiences: images, step, correct
    confusion: NDArray[np.int64] | None = None  # (K,K) counts of the target in adaptation: class by prediction
    has_baseline_row: bool = False  # whether the first row of `correct` was measured before any training
    metrics: dict[str, float | None] = field(default_factory=dict)  # computed from `correct`; set before after_eval
    current: Experience | None = field(default=None, repr=False)
    made_optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    _sets: dict[tuple[str, tuple[int, ...]], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def experience(self) -> Experience:
        """The experience that is being learned, or the last one learned."""
        return _there(self.current, "experience before the first one")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of this experience."""
        return _there(self.made_optimizer, "optimizer outside of training")

    @property
    def before(self) -> bool:
        """The old name of `has_baseline_row`, kept for users' strategies."""
        return self.has_baseline_row

    @property
    def progress(self) -> float:
        """The fraction of the experience's training that is done, from 0 to 1."""
        return (self.step - self.exp_first) / self.exp_steps if self.exp_steps else 0.0

    def learner_as(self, kind: type[T]) -> T:
        """The learner, typed as `kind`. Raises TypeError if it is not one."""
        return _as(self.learner, kind)

    def outputs(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> Outputs:
        """The learner's Outputs for a batch in the run's precision, with float32 logits.

        `weights` replace parameters and buffers of the learner by name.
        """
        return self._tools.outputs(batch, weights)

    def forward(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The (B, num_classes) logits of `outputs`."""
        return self.outputs(batch, weights).logits

    def clean_batches(self, rows: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Labelled batches, not augmented, in order: of this experience, or of any rows of the training table."""
        return self._tools.clean(self.experience.rows if rows is None else rows)

    def replay_batch(self, rows: NDArray[np.int64], name: str) -> Batch:
        """A labelled batch of these rows, augmented with the random stream called `name`."""
        return self._tools.augmented(rows, len(rows), name, self)

    def features(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """(n,D) float32 features of rows of the training table under the frozen tower, from the bank."""
        return self._tools.features(rows)

    def view_features(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """(V,n,D) float32 features of the augmented views of these rows, as many as the strategy asks for."""
        return self._tools.view_features(rows)

    def log(self, name: str, value: Any) -> None:
        """Record a number or a list of numbers under a name. A tensor is read only at the end of the epoch."""
        if self.tools is not None:
            self.tools.log(self, name, value)

    def class_mask(self, classes: Sequence[int]) -> torch.Tensor:
        """(K,) true for these classes; kept on the device."""
        chosen = set(classes)
        return self._set("mask", classes, [c in chosen for c in range(self.info.num_classes)])

    def class_ids(self, classes: Sequence[int]) -> torch.Tensor:
        """(n,) int64 ids of these classes; kept on the device."""
        return self._set("ids", classes, list(classes))

    def _set(self, kind: str, classes: Sequence[int], values: list[Any]) -> torch.Tensor:
        import torch  # late: commands that do not need torch import this module

        key = kind, tuple(classes)
        if key not in self._sets:
            device = "cpu" if self.tools is None else self.tools.loader.device
            dtype = torch.bool if kind == "mask" else torch.int64
            self._sets[key] = torch.tensor(values, dtype=dtype, device=device)
        return self._sets[key]

    @property
    def _tools(self) -> Tools:
        return _there(self.tools, "loop around this state: it has no tools")


class _OfRun:
    """An attribute of a Step that returns the same attribute of its run."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, step: Step | None, owner: type) -> Any:
        return self if step is None else getattr(step.run, self.name)


def _of_run() -> Any:
    return _OfRun()


class Step:
    """One update, passed to the handlers of STEP_EVENTS and to `Strategy.loss`: the run's State and the update's data.

    `batch` exists from before_forward on, `outputs` and `logits` from after_forward on, `loss` from before_backward on.
    Before that they raise RuntimeError. Handlers may set `replay` in before_training_iteration and `loss` in
    before_backward.
    """

    learner: torch.nn.Module = _of_run()
    info: StreamInfo = _of_run()
    seed: int = _of_run()
    mask: str = _of_run()
    experience: Experience = _of_run()
    trained: int = _of_run()
    seen: tuple[int, ...] = _of_run()
    epoch: int = _of_run()
    epoch_steps: int = _of_run()
    step: int = _of_run()
    exp_steps: int = _of_run()
    exp_first: int = _of_run()
    progress: float = _of_run()
    optimizer: torch.optim.Optimizer = _of_run()

    def __init__(self, run: State, rows: NDArray[np.int64], batch: Batch | None = None) -> None:
        """`rows`: the stream's rows of the training table for this step."""
        self.run = run
        self.rows = rows
        self.replay: NDArray[np.int64] | None = None  # rows to add to the batch
        self._batch = batch
        self._outputs: Outputs | None = None
        self._loss: torch.Tensor | None = None

    @property
    def batch(self) -> Batch:
        """The images: the stream's, then the replayed ones.

        With several processes (clsim/parallel.py) `images` are those of this process's share; all else is of the whole
        batch, as are `outputs`.
        """
        return _there(self._batch, "batch before before_forward")

    @batch.setter
    def batch(self, batch: Batch) -> None:
        """Set by the loop."""
        self._batch = batch

    @property
    def outputs(self) -> Outputs:
        """The learner's outputs for the batch, with float32 logits."""
        return _there(self._outputs, "outputs before after_forward")

    @outputs.setter
    def outputs(self, outputs: Outputs) -> None:
        """Set by the loop."""
        self._outputs = outputs

    @property
    def logits(self) -> torch.Tensor:
        """(B, num_classes) float32, unmasked."""
        return self.outputs.logits

    @property
    def loss(self) -> torch.Tensor:
        """The scalar to minimise; regularisers add to it."""
        return _there(self._loss, "loss before before_backward")

    @loss.setter
    def loss(self, loss: torch.Tensor) -> None:
        """Set by the loop, and by handlers of before_backward."""
        self._loss = loss

    def outputs_as(self, kind: type[T]) -> T:
        """The outputs, typed as `kind`. Raises TypeError if the learner returned another type."""
        return _as(self.outputs, kind)

    def learner_as(self, kind: type[T]) -> T:
        """See State."""
        return self.run.learner_as(kind)

    def forward(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """See State."""
        return self.run.forward(batch, weights)

    def replay_batch(self, rows: NDArray[np.int64], name: str) -> Batch:
        """See State."""
        return self.run.replay_batch(rows, name)

    def clean_batches(self, rows: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """See State."""
        return self.run.clean_batches(rows)

    def features(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """See State."""
        return self.run.features(rows)

    def log(self, name: str, value: Any) -> None:
        """See State."""
        self.run.log(name, value)

    def class_mask(self, classes: Sequence[int]) -> torch.Tensor:
        """See State."""
        return self.run.class_mask(classes)

    def class_ids(self, classes: Sequence[int]) -> torch.Tensor:
        """See State."""
        return self.run.class_ids(classes)


def _there(value: T | None, what: str) -> T:
    if value is None:
        raise RuntimeError(f"there is no {what}")
    return value


def _as(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is needed here, not {type(value).__name__}")
    return value
