"""TinyTL (Cai et al. 2020, arXiv:2007.11622)."""

from dataclasses import dataclass

from clsim.backbones.towers import Tower
from clsim.errors import RequestError
from clsim.families import Tuner
from clsim.parts.tuners import LiteResiduals, free_biases


@dataclass(kw_only=True)
class TinyTl(Tuner):
    """TinyTL: biases learn, and small residual branches beside the blocks. Cai et al. 2020, arXiv:2007.11622.

    Made for convolutional networks: here the branches run on the grid of patches, beside every block but the last.
    """

    groups: int = 8  # of the branches' convolution; divides the features of a token

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "groups")

    def tune(self, tower: Tower) -> LiteResiduals:
        if tower.width % self.groups:
            raise RequestError(f"groups={self.groups} does not divide the {tower.width} features of a token")
        free_biases(tower)
        return LiteResiduals(tower, self.groups)
