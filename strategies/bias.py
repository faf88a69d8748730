"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from dataclasses import dataclass

from clsim.backbones.towers import PLAIN, Tower, TunerHooks
from clsim.bases import TextTuner
from clsim.parts.tuners import free_biases


@dataclass(kw_only=True)
class Bias(TextTuner):
    """BitFit: every bias learns, those of norms and of the embedding included. Ben Zaken et al. 2021, arXiv:2106.10199.

    Cai et al. 2020 call the same "bias" (arXiv:2007.11622).
    """

    def tune(self, tower: Tower) -> TunerHooks:
        free_biases(tower)
        return PLAIN
