"""Families of strategies: what several methods share, so that each of them writes only what is its own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clsim.backbones.towers import Sites, Tower
from clsim.events import State
from clsim.parts.adaptation import reads
from clsim.parts.tuned import tuned
from clsim.strategy import Strategy


@dataclass(kw_only=True)
class Tuner(Strategy):
    """What is added to a frozen image tower, under a linear head. Write `tune`."""

    def tune(self, tower: Tower) -> Sites:
        """What is added to a tower; PLAIN, if it lets weights of the tower learn and adds nothing."""
        raise NotImplementedError

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, "image", self.tune)


@dataclass(kw_only=True)
class TextTuner(Tuner):
    """A tuner that text towers take as well as image towers."""

    tower: Literal["image", "text", "both"] = (
        "image"  # what is tuned; with text and both, images are told apart by cosine to the class names
    )

    @property
    def needs_text(self) -> bool:  # type: ignore[override]
        """For class names, which the text tower reads."""
        return self.tower != "image"

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """With class names it can."""
        return self.needs_text

    def reads(self) -> set[str]:
        return {"features"} if self.tower == "text" else {"images"}

    def texts(self, backbone: Any, info: Any) -> nn.Module | None:
        """A module that gives (K,E) features of the classes; None: class names, read by the tuned tower."""
        return None

    def build(self, backbone: Any, info: Any) -> nn.Module:
        return tuned(backbone, info, self.tower, self.tune, lambda: self.texts(backbone, info))


@dataclass(kw_only=True)
class TextPrompts(Strategy):
    """Words that learn around class names, before CLIP's frozen text tower; images are features from the bank.

    The recipe is that of CoOp (Zhou et al. 2022, arXiv:2109.01134). Write `build`.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"  # made anew for each experience
    lr: float = 2e-3  # learning rate
    schedule: Literal["constant", "cosine", "cosine_epochs"] = (
        "cosine_epochs"  # of lr in an experience: by step or epoch
    )
    warmup_epochs: int = 1  # first epochs of an experience, at warmup_lr
    weight_decay: float = 5e-4  # of every trained parameter
    views: int = 0  # augmented views of each image to learn from, computed once; 0: the clean image alone

    needs_text: ClassVar[bool] = True
    scores_unseen: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "views")

    def reads(self) -> set[str]:
        return {"features"}

    def feature_views(self) -> int:
        return self.views


@dataclass(kw_only=True)
class Adaptation(Strategy):
    """Learning from a source's labels while a target, seen without any, is made to agree. Write `adapt`, and `build`.

    On features from the bank, behind a bottleneck that learns; the usual code fine-tunes the backbone, which `tune=all`
    does, too. On a stream without a target it learns from the labelled images alone.
    """

    epochs: int = 20  # passes over the source
    bottleneck: int = 64  # features between tower and head
    trade_off: float = 1.0  # weight of what the target adds to the loss
    tune: Literal["head", "all"] = "head"  # what learns: what stands on the frozen tower, or the tower as well

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck")

    def reads(self) -> set[str]:
        return reads(self.tune)

    def adapt(self, s: State) -> Tensor:
        """What the target adds to the loss of a batch, a scalar; `s.learner` is an Adapting."""
        raise NotImplementedError

    def loss(self, s: State) -> Tensor:
        loss = super().loss(s)
        return loss if s.learner.on_target is None else loss + self.adapt(s)  # type: ignore[union-attr, operator]
