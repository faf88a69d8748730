"""Dark experience replay, DER++ (Buzzega et al. 2020, arXiv:2004.07211)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clsim.events import Part, State, Step
from clsim.parts.memory import Reservoir
from clsim.parts.regularisers import cross_entropy, require_weight


@dataclass
class Der(Part):
    """DER++: a memory of images with the logits that the learner gave them (Buzzega et al. 2020).

    Adds the two terms of eq. 6. Each uses a separate draw from the memory, and both draws are augmented again:
    ``alpha`` times the mean squared difference between logits and stored logits, over all classes, and ``beta`` times
    the cross-entropy over the classes seen (all classes if the strategy's `mask` is "all"). As in the paper, the stored
    image is not augmented, but its logits are those of the augmented image in a training step. Unlike in the paper, an
    image is offered once, after its experience has been learned, with the logits of its last training step.
    """

    alpha: float = 0.5  # weight of the squared difference to the stored logits
    beta: float = 0.5  # weight of the cross-entropy with the labels
    size: int = 500  # images kept

    short: ClassVar[tuple[str, ...]] = ("alpha", "beta", "size")
    adds_to_loss: ClassVar[bool] = True
    needs_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_weight("alpha", self.alpha)
        require_weight("beta", self.beta)
        self.memory = Reservoir(self.size)
        self.logits: dict[int, Tensor] = {}  # row in memory -> (K,) logits
        self.latest: Tensor | None = None  # (n,K) logits of this experience's n rows, ascending; on the device

    @property
    def stored_bytes(self) -> int:
        """Uncompressed bytes of the images and logits in memory."""
        return self.memory.stored_bytes + sum(logits.nbytes for logits in self.logits.values())

    def after_forward(self, s: Step) -> None:
        if self.latest is None:
            self.latest = s.logits.new_zeros(len(s.experience.rows), s.logits.shape[1])
        self.latest = self.latest.to(s.logits.device)  # a checkpoint loads it on the CPU
        places = torch.from_numpy(np.searchsorted(np.sort(s.experience.rows), s.rows))
        self.latest[places.to(s.logits.device)] = s.logits[: len(s.rows)].detach()

    def before_backward(self, s: Step) -> None:
        if not self.logits:
            return
        first, second = self.memory.draw(s, "replay of logits"), self.memory.draw(s, "replay of labels")
        batch = s.replay_batch(np.concatenate([first, second]), "augmentation of replay")
        logits = s.forward(batch)
        stored = torch.stack([self.logits[row] for row in first.tolist()]).to(logits.device)
        classes = tuple(range(s.info.num_classes)) if s.mask == "all" else s.seen
        s.loss = s.loss + self.alpha * nn.functional.mse_loss(logits[: len(first)], stored)
        labels = batch.known_labels[len(first) :]
        s.loss = s.loss + self.beta * cross_entropy(logits[len(first) :], labels, s.class_mask(classes))

    def after_training_exp(self, s: State) -> None:
        if self.latest is None:  # no training step was made, so there are no logits to store
            return
        self.memory.after_training_exp(s)
        known = self.logits | dict(zip(np.sort(s.experience.rows).tolist(), self.latest.cpu(), strict=True))
        self.logits = {row: known[row].clone() for row in self.memory.rows.tolist()}
        self.latest = None

    def state(self) -> dict[str, Any]:
        stacked = torch.stack(list(self.logits.values())) if self.logits else torch.empty(0)
        memory = self.memory.state()
        return {"memory": memory, "rows": list(self.logits), "logits": stacked, "latest": self.latest}

    def load(self, state: dict[str, Any]) -> None:
        self.memory.load(state["memory"])
        self.logits = dict(zip(state["rows"], state["logits"], strict=True))
        self.latest = state["latest"]
