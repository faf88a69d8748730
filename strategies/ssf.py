"""SSF (Lian et al. 2022, arXiv:2210.08823)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.families import Tuner
from clsim.parts.tuners import ScaleShift


@dataclass(kw_only=True)
class Ssf(Tuner):
    """SSF: a scale and a shift behind every projection and norm. Lian et al. 2022, arXiv:2210.08823."""

    def tune(self, tower: Tower) -> ScaleShift:
        return ScaleShift(tower)
