"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from clsim.parts.memory import Reservoir


@dataclass
class Er(Reservoir):
    """Experience replay: earlier images in every batch, as many as the stream brings (Chaudhry et al. 2019)."""

    size: int = 500  # images kept, in all or (per_class) of each class
    per_class: bool = False  # a reservoir for each class

    short: ClassVar[tuple[str, ...]] = ("size",)
    aliases: ClassVar[dict[str, dict[str, Any]]] = {"er_per_class": {"per_class": True}}

    def __post_init__(self) -> None:
        super().__init__(self.size, self.per_class)
