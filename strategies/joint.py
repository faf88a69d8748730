"""Joint training: the upper bound."""

from collections.abc import Sequence
from dataclasses import dataclass

from clsim.data.streams import Experience, merged
from clsim.strategies.finetune import Finetune


@dataclass(kw_only=True)
class Joint(Finetune):
    """Joint training: fine-tuning on all experiences at once; nothing can be forgotten."""

    def experiences(self, stream: Sequence[Experience]) -> Sequence[Experience]:
        return [merged(stream)]
