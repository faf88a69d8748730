"""Replay of exemplars that are chosen by herding (Rebuffi et al. 2017, arXiv:1611.07725)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from clsim import rng
from clsim.events import Part, State, Step
from clsim.parts.exemplars import ExemplarSets


@dataclass
class Herding(Part):
    """Replay of exemplars chosen by herding: every batch gets as many of them as it has from the stream.

    The exemplars of a class are chosen when it was learned, by the features of the learner then (iCaRL, Rebuffi et al.
    2017, arXiv:1611.07725, algorithm 4). When there are more classes, each keeps its first ones.
    """

    size: int = 2000  # images kept, in total or (per_class) for each class
    per_class: bool = False  # whether size is that of each class

    short: ClassVar[tuple[str, ...]] = ("size",)
    replays: ClassVar[bool] = True
    needs_earlier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a rehearsal memory holds at least 1 image, not {self.size}")
        self.exemplars = ExemplarSets()

    @property
    def stored_bytes(self) -> int:
        """Uncompressed bytes of the exemplars."""
        return self.exemplars.stored_bytes

    def before_training_iteration(self, s: Step) -> None:
        if len(rows := self.exemplars.rows):
            draw = np.random.default_rng(rng.derive(s.seed, "replay of exemplars", s.step))
            chosen = draw.choice(rows, size=min(len(s.rows), len(rows)), replace=False)
            s.replay = chosen if s.replay is None else np.concatenate([s.replay, chosen])

    def after_training_exp(self, s: State) -> None:
        s.learner.eval()
        with torch.no_grad():
            self.exemplars.update(s, self.size if self.per_class else max(1, self.size // len(s.seen)))

    def state(self) -> dict[str, Any]:
        return self.exemplars.state()

    def load(self, state: dict[str, Any]) -> None:
        self.exemplars.load(state)
