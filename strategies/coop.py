"""CoOp: context optimisation (Zhou et al. 2022, arXiv:2109.01134)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clsim import Backbone, StreamInfo
from clsim.backbones.clip import TextTower
from clsim.bases import TextPrompts
from clsim.parts.learners import BankFeatures, TextClassifier
from clsim.parts.text import TEMPLATE, TrainingStarted, class_features
from clsim.parts.text_prompts import PromptedText, Wording, new_context


class ContextClasses(nn.Module):
    """Class names in a learned context; until training starts, in the plain template."""

    plain: Tensor

    def __init__(self, text: TextTower, class_names: tuple[str, ...], how: "CoOp") -> None:
        super().__init__()
        self.prompted = PromptedText(text, Wording.of(text, class_names, how.context_length, how.class_position))
        copies = (len(class_names),) if how.class_specific else ()
        self.context = new_context(text, how.context_length, how.init, copies)
        self.class_specific = how.class_specific
        self.started = TrainingStarted()
        self.register_buffer("plain", class_features(text, class_names, (TEMPLATE,)), persistent=False)

    def forward(self) -> Tensor:
        if not self.started():
            return self.plain
        if self.class_specific:
            return self.prompted.each(self.context)
        shared: Tensor = self.prompted(self.context[None])[0]
        return shared


@dataclass(kw_only=True)
class CoOp(TextPrompts):
    """Context optimisation: learned words around the class names. Zhou et al. 2022, arXiv:2109.01134.

    Both towers are frozen; image features come from the bank. `epochs` in the paper: 50 for one image per class, 100
    for two and four, 200 for more.
    """

    context_length: int = 16  # learned vectors
    class_position: Literal["end", "middle", "front"] = "end"  # position of the class name among the learned vectors
    class_specific: bool = False  # separate vectors for each class
    init: str = ""  # words to start from, with as many tokens as vectors, e.g. "a photo of a"; empty: random
    epochs: int = 50

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "words": {"context_length": 4, "init": "a photo of a"},
        "class_specific": {"class_specific": True},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "context_length")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        text = backbone.text_tower
        return TextClassifier(BankFeatures(), ContextClasses(text, info.class_names, self), text.logit_scale)
