"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clsim import Part
from clsim.parts.er import Er as Replay
from clsim.strategies.finetune import Finetune


@dataclass(kw_only=True)
class Er(Finetune):
    """Experience replay: fine-tuning on images of the stream and as many images from a memory.

    `--strategy finetune --with er:500` is the same method and the same run as `--strategy er memory=500`.
    """

    memory: int = 500  # images kept, in total or (per_class) for each class
    per_class: bool = False  # one reservoir for each class

    same_as: ClassVar[str] = "finetune --with er,size=memory,per_class=per_class"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "memory")

    def parts(self) -> Sequence[Part]:
        return [Replay(self.memory, self.per_class)]
