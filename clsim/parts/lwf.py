"""Learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clsim.events import Part, State, Step
from clsim.parts.regularisers import require_weight, trained

TEMPERATURE = 2.0  # of distillation, section 3


@dataclass
class Lwf(Part):
    """Learning without forgetting: distillation of the earlier classes from the learner before the experience.

    Adds ``alpha`` times the cross-entropy between two softened outputs (temperature 2) for the same augmented batch:
    of the learner before the experience (the teacher) and of the learner now (Li and Hoiem 2016, arXiv:1606.09282,
    section 3). The teacher is copied after `Strategy.begin`, so it has the same shape if the learner grows. The paper
    has one head per task; here one softmax covers all classes seen earlier. The part keeps a copy of the trained
    weights and of the buffers, never of a frozen tower. The teacher is in evaluation mode.
    """

    alpha: float = 1.0  # weight of the term

    short: ClassVar[tuple[str, ...]] = ("alpha",)
    adds_to_loss: ClassVar[bool] = True
    needs_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_weight("alpha", self.alpha)
        self.classes: tuple[int, ...] = ()  # classes seen before this experience
        self.teacher: dict[str, Tensor] = {}  # parameters and buffers by name

    @property
    def stored_bytes(self) -> int:
        """Bytes of the copied weights."""
        return sum(tensor.nbytes for tensor in self.teacher.values())

    def before_training_exp(self, s: State) -> None:
        if self.classes:
            kept = {**trained(s.learner), **dict(s.learner.named_buffers())}
            self.teacher = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def before_backward(self, s: Step) -> None:
        if not self.classes:
            return
        device = s.logits.device  # a checkpoint loads the teacher on the CPU
        self.teacher = {name: tensor.to(device) for name, tensor in self.teacher.items()}
        s.learner.eval()
        with torch.no_grad():
            taught = s.forward(s.batch, self.teacher)
        s.learner.train()
        s.loss = s.loss + self.alpha * distillation(s.logits, taught, s.class_ids(self.classes))

    def after_training_exp(self, s: State) -> None:
        self.classes = s.seen

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "teacher": dict(self.teacher)}

    def load(self, state: dict[str, Any]) -> None:
        self.classes, self.teacher = tuple(state["classes"]), dict(state["teacher"])


def distillation(logits: Tensor, taught: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy between (B,K) logits and the teacher's, both softened, only over the ids in `classes` (n,)."""
    target = (taught[:, classes] / TEMPERATURE).softmax(dim=1)
    return -(target * (logits[:, classes] / TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()
