"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from collections.abc import Sequence
from dataclasses import dataclass

from clsim import Part
from clsim.parts.memory import Reservoir
from clsim.strategies.finetune import Finetune


@dataclass(kw_only=True)
class Er(Finetune):
    """Experience replay: fine-tuning on the stream and as many remembered images."""

    memory: int = 500  # images kept, in all or (per_class) of each class
    per_class: bool = False  # a reservoir for each class

    def parts(self) -> Sequence[Part]:
        return [Reservoir(self.memory, self.per_class)]
