"""Rehearsal: a memory of earlier images, replayed beside the stream."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import rng
from clsim.events import Part, State
from clsim.parts.regularisers import cross_entropy, require_weight


class Reservoir(Part):
    """A memory filled by reservoir sampling (Vitter 1985), replayed a stream's batch at a time.

    It keeps rows of the training table, which stand for unaugmented images: a replayed image is augmented anew. An
    experience's images are offered once each, when it has been learned: what is replayed comes from earlier ones.
    """

    def __init__(self, capacity: int, per_class: bool = False) -> None:
        """`capacity` images in all, or of each class. Raises ValueError if it is below 1."""
        if capacity < 1:
            raise ValueError(f"a rehearsal memory holds at least 1 image, not {capacity}")
        self.capacity = capacity
        self.per_class = per_class
        self.kept: dict[int, list[int]] = {}  # group (class, or 0 for all) -> rows
        self.offered: dict[int, int] = {}  # group -> images offered so far
        self.image_bytes = 0

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the training table now in memory."""
        return np.array([row for group in self.kept.values() for row in group], dtype=np.int64)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the images in memory take, uncompressed."""
        return len(self.rows) * self.image_bytes

    def draw(self, s: State, name: str) -> NDArray[np.int64]:
        """As many different rows as the stream brings in this step, or all; `name` is that of the random stream."""
        assert s.rows is not None
        draw = np.random.default_rng(rng.derive(s.seed, name, s.step))
        return draw.choice(self.rows, size=min(len(s.rows), len(self.rows)), replace=False)

    def before_training_iteration(self, s: State) -> None:
        if len(self.rows):
            chosen = self.draw(s, "replay")
            s.replay = chosen if s.replay is None else np.concatenate([s.replay, chosen])

    def after_training_exp(self, s: State) -> None:
        assert s.experience is not None
        table = s.experience.table
        self.image_bytes = table.image_bytes
        draw = np.random.default_rng(rng.derive(s.seed, "reservoir", s.trained))
        for row in draw.permutation(s.experience.rows).tolist():
            self._offer(row, int(table.labels[row]) if self.per_class else 0, draw)

    def _offer(self, row: int, group: int, draw: np.random.Generator) -> None:
        kept = self.kept.setdefault(group, [])
        self.offered[group] = self.offered.get(group, 0) + 1
        if len(kept) < self.capacity:
            kept.append(row)
            return
        place = int(draw.integers(self.offered[group]))
        if place < self.capacity:
            kept[place] = row

    def state(self) -> dict[str, Any]:
        return {"kept": dict(self.kept), "offered": dict(self.offered), "image_bytes": self.image_bytes}

    def load(self, state: dict[str, Any]) -> None:
        self.kept = {group: list(rows) for group, rows in state["kept"].items()}
        self.offered = dict(state["offered"])
        self.image_bytes = state["image_bytes"]


class DarkExperience(Part):
    """DER++: a memory of images with the logits that the learner gave them (Buzzega et al. 2020, arXiv:2004.07211).

    Adds eq. 6's two terms, each on a draw of its own from the memory, both augmented anew:
    ``alpha`` times the mean squared difference between logits and stored logits, over all classes, and ``beta`` times
    the cross-entropy over the classes seen (all classes, where the strategy's `mask` is "all"). As in the paper, the
    stored image is not augmented, while its logits are those of the augmented image in a training step. Apart from the
    paper, an image is offered once, when its experience has been learned, with the logits of its last training step.
    """

    def __init__(self, alpha: float, beta: float, capacity: int) -> None:
        """Raises ValueError if a weight is negative or `capacity` (images) below 1."""
        require_weight("alpha", alpha)
        require_weight("beta", beta)
        self.alpha = alpha
        self.beta = beta
        self.memory = Reservoir(capacity)
        self.logits: dict[int, Tensor] = {}  # row in memory -> (K,)
        self.latest: dict[int, Tensor] = {}  # row of this experience -> (K,), from its last training step

    @property
    def stored_bytes(self) -> int:
        """Bytes that images and logits in memory take, uncompressed."""
        return self.memory.stored_bytes + sum(logits.nbytes for logits in self.logits.values())

    def after_forward(self, s: State) -> None:
        assert s.rows is not None and s.logits is not None
        stream = s.logits[: len(s.rows)].detach().cpu()
        self.latest |= {row: logits.clone() for row, logits in zip(s.rows.tolist(), stream, strict=True)}

    def before_backward(self, s: State) -> None:
        if not self.logits:
            return
        assert s.loss is not None and s.replay_batch is not None and s.forward is not None
        first, second = self.memory.draw(s, "replay of logits"), self.memory.draw(s, "replay of labels")
        batch = s.replay_batch(np.concatenate([first, second]), "augmentation of replay")
        assert batch.labels is not None
        logits = s.forward(batch, None)
        stored = torch.stack([self.logits[row] for row in first.tolist()]).to(logits.device)
        classes = tuple(range(s.info.num_classes)) if s.mask == "all" else s.seen
        s.loss = s.loss + self.alpha * nn.functional.mse_loss(logits[: len(first)], stored)
        s.loss = s.loss + self.beta * cross_entropy(logits[len(first) :], batch.labels[len(first) :], classes)

    def after_training_exp(self, s: State) -> None:
        self.memory.after_training_exp(s)
        known = self.logits | self.latest
        self.logits = {row: known[row] for row in self.memory.rows.tolist()}
        self.latest = {}

    def state(self) -> dict[str, Any]:
        # `latest` is left out: between experiences it is empty, and every further epoch fills it anew
        stacked = torch.stack(list(self.logits.values())) if self.logits else torch.empty(0)
        return {"memory": self.memory.state(), "rows": list(self.logits), "logits": stacked}

    def load(self, state: dict[str, Any]) -> None:
        self.memory.load(state["memory"])
        self.logits = dict(zip(state["rows"], state["logits"], strict=True))
