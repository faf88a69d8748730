"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clsim.errors import RunFailed
from clsim.events import Part, State, Step
from clsim.parts.regularisers import cross_entropy, require_weight, stream_classes, trained


@dataclass
class Ewc(Part):
    """Elastic weight consolidation, online: a quadratic penalty on each weight, scaled by its Fisher information.

    It is like a spring on each weight, as stiff as the weight was important. Adds
    ``strength / 2 * sum_i F_i (w_i - w*_i)^2`` (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3) with one penalty for
    all earlier experiences: w* are the weights after the latest experience, and F is the sum of the Fisher information
    of all experiences (Schwarz et al. 2018, arXiv:1805.06370, section 4, with gamma = 1). The F of an experience is the
    mean over its images of the squared gradient of the log-likelihood of each single image, with its given label (the
    empirical Fisher), on clean images and over the classes that the training loss's softmax included. (The square of
    the mean gradient of a batch would be a different quantity.)

    A weight that has grown since (a head replaced by a larger one) is penalised in its old entries only, which must be
    its first ones along each axis.
    """

    strength: float = 10.0  # the paper's lambda

    short: ClassVar[tuple[str, ...]] = ("strength",)
    adds_to_loss: ClassVar[bool] = True
    needs_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_weight("strength", self.strength)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the Fisher information and of the weights w*."""
        return sum(t.nbytes for t in (*self.fisher.values(), *self.anchor.values()))

    def before_backward(self, s: Step) -> None:
        weights = {name: p for name, p in trained(s.learner).items() if name in self.fisher}
        for kept in (self.fisher, self.anchor):  # a checkpoint loads them on the CPU
            kept.update({name: _grown(name, kept[name], p) for name, p in weights.items()})
        terms = [(self.fisher[name] * (p - self.anchor[name]) ** 2).sum() for name, p in weights.items()]
        if terms:
            s.loss = s.loss + self.strength / 2 * torch.stack(terms).sum()

    def after_training_exp(self, s: State) -> None:
        s.learner.eval()
        for name, importance in self._importance(s).items():
            earlier = self.fisher.get(name, torch.zeros_like(importance))
            self.fisher[name] = _grown(name, earlier, importance) + importance
        self.anchor |= {name: p.detach().clone() for name, p in trained(s.learner).items()}

    def _importance(self, s: State) -> dict[str, Tensor]:
        """The Fisher information of this experience: weight's name -> tensor."""
        weights, classes = trained(s.learner), stream_classes(s)
        sums = {name: torch.zeros_like(p) for name, p in weights.items()}
        for batch in s.clean_batches():
            for image in batch.singles():
                loss = cross_entropy(s.forward(image), image.known_labels, s.class_mask(classes))
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient**2
        return {name: total / len(s.experience.rows) for name, total in sums.items()}

    def state(self) -> dict[str, Any]:
        return {"fisher": dict(self.fisher), "anchor": dict(self.anchor)}

    def load(self, state: dict[str, Any]) -> None:
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])


def _grown(name: str, kept: Tensor, now: Tensor) -> Tensor:
    """`kept` with the device and shape of `now`, with zeros in new entries. Raises RunFailed if entries are gone."""
    if kept.shape == now.shape:
        return kept.to(now.device)
    if kept.ndim != now.ndim or any(old > new for old, new in zip(kept.shape, now.shape, strict=True)):
        raise RunFailed(
            f"ewc: {name} was {tuple(kept.shape)} after an earlier experience and is {tuple(now.shape)} now: it may "
            "grow, but not shrink"
        )
    grown = torch.zeros_like(now, requires_grad=False)
    grown[tuple(map(slice, kept.shape))] = kept.to(now.device)
    return grown
