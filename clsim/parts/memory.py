"""The memory of the rehearsal parts: a reservoir of earlier images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim import rng
from clsim.data.streams import Experience
from clsim.events import Part, State, Step


class Reservoir(Part):
    """A memory filled by reservoir sampling (Vitter 1985); it replays as many images per step as come from the stream.

    It keeps rows of the training table, that is, images before augmentation: a replayed image is augmented again. Each
    image of an experience is offered once, after the experience has been learned. So only images of earlier experiences
    are replayed. In a stream without boundaries each image is offered after the step that learned it.
    """

    needs_boundaries = False
    replays = True
    needs_earlier = True

    def __init__(self, capacity: int, per_class: bool = False) -> None:
        """`capacity`: images in total, or per class. Raises ValueError if it is below 1."""
        if capacity < 1:
            raise ValueError(f"a rehearsal memory holds at least 1 image, not {capacity}")
        self.capacity = capacity
        self.per_class = per_class
        self.kept: dict[int, list[int]] = {}  # group (class, or 0 for all) -> rows
        self.offered: dict[int, int] = {}  # group -> images offered so far
        self.stored = 0  # bytes

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the training table that are in memory now."""
        return np.array([row for group in self.kept.values() for row in group], dtype=np.int64)

    @property
    def stored_bytes(self) -> int:
        """Uncompressed bytes of the images in memory."""
        return self.stored

    def draw(self, s: Step, name: str) -> NDArray[np.int64]:
        """Different rows, as many as come from the stream in this step, or all; `name`: the random stream."""
        draw = np.random.default_rng(rng.derive(s.seed, name, s.step))
        return draw.choice(self.rows, size=min(len(s.rows), len(self.rows)), replace=False)

    def before_training_iteration(self, s: Step) -> None:
        if len(self.rows):
            chosen = self.draw(s, "replay")
            s.replay = chosen if s.replay is None else np.concatenate([s.replay, chosen])

    def after_training_iteration(self, s: Step) -> None:
        if not s.experience.boundary:
            self._offer_all(
                s.rows, s.experience, np.random.default_rng(rng.derive(s.seed, "reservoir of step", s.step))
            )

    def after_training_exp(self, s: State) -> None:
        draw = np.random.default_rng(rng.derive(s.seed, "reservoir", s.trained))
        self._offer_all(draw.permutation(s.experience.rows), s.experience, draw)

    def _offer_all(self, rows: NDArray[np.int64], experience: Experience, draw: np.random.Generator) -> None:
        table = experience.table
        for row in rows.tolist():
            self._offer(row, int(table.labels[row]) if self.per_class else 0, draw)
        self.stored = table.bytes_of(self.rows)

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
        return {"kept": dict(self.kept), "offered": dict(self.offered), "stored": self.stored}

    def load(self, state: dict[str, Any]) -> None:
        self.kept = {group: list(rows) for group, rows in state["kept"].items()}
        self.offered = dict(state["offered"])
        self.stored = state["stored"]


def __getattr__(name: str) -> Any:
    # old names of the parts in this module; late, because their files import this one
    if name == "DarkExperience":
        from clsim.parts.der import Der

        return Der
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
