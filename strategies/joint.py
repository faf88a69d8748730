"""Joint training: the upper bound."""

from collections.abc import Sequence
from dataclasses import dataclass

from clsim.data.streams import Experience, StreamInfo, merged
from clsim.strategies.finetune import Finetune


@dataclass(kw_only=True)
class Joint(Finetune):
    """Joint training: fine-tuning on all experiences at once; nothing can be forgotten."""

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | {"mask": "all classes are learned at once"}

    def experiences(self, stream: Sequence[Experience]) -> Sequence[Experience]:
        return [merged(stream)]
