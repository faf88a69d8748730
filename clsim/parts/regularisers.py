"""Regularisers: terms of the loss that hold on to what was learned, without images of earlier experiences."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clsim.events import Part, State

TEMPERATURE = 2.0  # of distillation, Li and Hoiem 2016, section 3


def require_weight(name: str, value: float) -> None:
    """Raises ValueError if a term's weight is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, not {value}")


def cross_entropy(logits: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Mean cross-entropy of (B,K) logits and (B,) labels, where only `classes` are told apart."""
    outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    outside[list(classes)] = False
    return nn.functional.cross_entropy(logits.masked_fill(outside, -torch.inf), labels)


def stream_classes(s: State) -> tuple[int, ...]:
    """The classes that the training loss tells apart in images of the stream."""
    assert s.experience is not None
    return {"current": s.experience.classes, "seen": s.seen, "all": tuple(range(s.info.num_classes))}[s.mask]


def trained(learner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for gradients, by name."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


class Ewc(Part):
    """Elastic weight consolidation, online: a spring on each weight, as stiff as the weight was important.

    Adds ``strength / 2 * sum_i F_i (w_i - w*_i)^2`` (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3) with one set of
    springs for all that was learned: w* are the weights after the latest experience, and F is the sum of every
    experience's Fisher information (Schwarz et al. 2018, arXiv:1805.06370, section 4, with gamma = 1). An experience's
    F is the mean over its images of the squared gradient of each one's own log-likelihood, with the label that it
    came with (the empirical Fisher), on clean images and over the classes that the training loss told apart.
    Squaring the gradient of a batch's mean would not be the same.
    """

    def __init__(self, strength: float) -> None:
        """`strength` is the paper's lambda. Raises ValueError if it is negative."""
        require_weight("lambda", strength)
        self.strength = strength
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the importances and of the weights that the springs are fixed to."""
        return sum(t.nbytes for t in (*self.fisher.values(), *self.anchor.values()))

    def before_training_exp(self, s: State) -> None:
        weights = trained(s.learner)  # from a checkpoint they come on the CPU
        for kept in (self.fisher, self.anchor):
            kept.update({name: t.to(weights[name].device) for name, t in kept.items() if name in weights})

    def before_backward(self, s: State) -> None:
        assert s.loss is not None
        terms = [
            (self.fisher[name] * (p - self.anchor[name]) ** 2).sum()
            for name, p in trained(s.learner).items()
            if name in self.fisher
        ]
        if terms:
            s.loss = s.loss + self.strength / 2 * torch.stack(terms).sum()

    def after_training_exp(self, s: State) -> None:
        s.learner.eval()
        for name, importance in self._importance(s).items():
            self.fisher[name] = self.fisher.get(name, torch.zeros_like(importance)) + importance
        self.anchor |= {name: p.detach().clone() for name, p in trained(s.learner).items()}

    def _importance(self, s: State) -> dict[str, Tensor]:
        """The Fisher information of this experience, by the weights' names."""
        assert s.experience is not None and s.clean_batches is not None and s.forward is not None
        weights, classes = trained(s.learner), stream_classes(s)
        sums = {name: torch.zeros_like(p) for name, p in weights.items()}
        for batch in s.clean_batches():
            for image in batch.each():
                assert image.labels is not None
                loss = cross_entropy(s.forward(image, None), image.labels, classes)
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient**2
        return {name: total / len(s.experience.rows) for name, total in sums.items()}

    def state(self) -> dict[str, Any]:
        return {"fisher": dict(self.fisher), "anchor": dict(self.anchor)}

    def load(self, state: dict[str, Any]) -> None:
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])


class Lwf(Part):
    """Learning without forgetting: the learner of before the experience teaches the classes seen earlier.

    Adds ``weight`` times the cross-entropy between the softened outputs, at temperature 2, of the learner as it stood
    before the experience and as it stands, on the same augmented batch (Li and Hoiem 2016, arXiv:1606.09282,
    section 3). The paper has a head for each task; here one softmax runs over all classes seen earlier. Kept is a copy
    of the weights that learn and of the buffers, never of a frozen tower; while teaching it is in evaluation mode.
    """

    def __init__(self, weight: float) -> None:
        """Raises ValueError if `weight` is negative."""
        require_weight("alpha", weight)
        self.weight = weight
        self.classes: tuple[int, ...] = ()  # seen before this experience
        self.teacher: dict[str, Tensor] = {}  # parameters and buffers by name

    @property
    def stored_bytes(self) -> int:
        """Bytes of the copied weights."""
        return sum(tensor.nbytes for tensor in self.teacher.values())

    def before_training_exp(self, s: State) -> None:
        if self.classes:
            kept = {**trained(s.learner), **dict(s.learner.named_buffers())}
            self.teacher = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def before_backward(self, s: State) -> None:
        if not self.classes:
            return
        assert s.batch is not None and s.logits is not None and s.loss is not None and s.forward is not None
        s.learner.eval()
        with torch.no_grad():
            taught = s.forward(s.batch, self.teacher)
        s.learner.train()
        s.loss = s.loss + self.weight * distillation(s.logits, taught, self.classes)

    def after_training_exp(self, s: State) -> None:
        self.classes = s.seen

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}  # the teacher is copied from the learner when the next experience begins

    def load(self, state: dict[str, Any]) -> None:
        self.classes = tuple(state["classes"])


def distillation(logits: Tensor, taught: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Mean cross-entropy of (B,K) logits to the teacher's, both softened, over `classes` alone."""
    chosen = list(classes)
    target = (taught[:, chosen] / TEMPERATURE).softmax(dim=1)
    return -(target * (logits[:, chosen] / TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()
