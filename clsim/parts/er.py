"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from clsim.parts.memory import Reservoir


@dataclass
class Er(Reservoir):
    """Experience replay: every batch gets as many earlier images as it has from the stream (Chaudhry et al. 2019)."""

    size: int = 500  # images kept, in total or (per_class) for each class
    per_class: bool = False  # one reservoir for each class

    short: ClassVar[tuple[str, ...]] = ("size",)
    aliases: ClassVar[dict[str, dict[str, Any]]] = {"er_per_class": {"per_class": True}}

    def __post_init__(self) -> None:
        super().__init__(self.size, self.per_class)
