"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from dataclasses import dataclass

from clsim.backbones.towers import PLAIN, Tower, TunerHooks
from clsim.bases import TextTuner
from clsim.parts.tuners import free_biases


@dataclass(kw_only=True)
class Bias(TextTuner):
    """BitFit: every bias learns, also in norms and in the embedding. Ben Zaken et al. 2021, arXiv:2106.10199.

    Cai et al. 2020 (arXiv:2007.11622) call this method "bias".
    """

    def tune(self, tower: Tower) -> TunerHooks:
        free_biases(tower)
        return PLAIN
