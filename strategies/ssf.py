"""SSF (Lian et al. 2022, arXiv:2210.08823)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clsim import Strategy
from clsim.parts.tuned import tuned
from clsim.parts.tuners import ScaleShift


@dataclass(kw_only=True)
class Ssf(Strategy):
    """SSF: a scale and a shift behind every projection and norm. Lian et al. 2022, arXiv:2210.08823."""

    lr: float = 1e-3  # learning rate

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, "image", ScaleShift)
