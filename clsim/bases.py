"""Families of strategies: what several methods share, so that each file holds only what is its own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower, TunerHooks
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.events import Step
from clsim.parts.adaptation import AdaptingOutputs, inputs_for
from clsim.parts.learners import Where, tuned
from clsim.parts.prompt_pools import Progress
from clsim.parts.text import start_training
from clsim.strategy import Mask, Optimizer, Schedule, Strategy


@dataclass(kw_only=True)
class Tuner(Strategy):
    """What is added to a frozen image tower, with a linear head. Write `tune`."""

    def tune(self, tower: Tower) -> TunerHooks:
        """What is added to a tower; PLAIN, if it lets weights of the tower learn and adds nothing."""
        raise NotImplementedError

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return tuned(backbone, info, "image", self.tune)


@dataclass(kw_only=True)
class TextTuner(Tuner):
    """A tuner for text towers as well as image towers."""

    tower: Where = (
        "image"  # what is tuned; with text and both, images are classified by cosine to the class-name features
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

    def texts(self, backbone: Backbone, info: StreamInfo) -> nn.Module | None:
        """A module that gives (K,E) features of the classes; None: class names, read by the tuned tower."""
        return None

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return tuned(backbone, info, self.tower, self.tune, lambda: self.texts(backbone, info))

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        start_training(learner)


@dataclass(kw_only=True)
class PromptPools(Strategy):
    """Prompts selected for each image by keys or centres, on a frozen image tower. Write `build`.

    The query is the frozen tower's feature of the clean image. The learner has a `progress`.
    """

    lr_base: float = 0.0  # learning rate at a batch of 256 images; it scales with the batch. 0: take lr as it is
    mask: Mask = "current"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "lr_base")

    def reads(self) -> set[str]:
        return {"images", "features"}

    @property
    def learning_rate(self) -> float:
        return self.lr_base * self.batch_size / 256 if self.lr_base > 0 else self.lr

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        for module in learner.modules():
            if isinstance(module, Progress):
                module.begin(experience.index)


@dataclass(kw_only=True)
class TextPrompts(Strategy):
    """Learned words around class names, read by CLIP's frozen text tower; images are features from the bank.

    The recipe is that of CoOp (Zhou et al. 2022, arXiv:2109.01134). Write `build`.
    """

    optimizer: Optimizer = "sgd"
    lr: float = 2e-3
    schedule: Schedule = "cosine_epochs"
    warmup_epochs: int = 1
    weight_decay: float = 5e-4
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

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        start_training(learner)


@dataclass(kw_only=True)
class Adaptation(Strategy):
    """Learning from a source with labels while features or predictions of a target without labels are aligned to it.

    Write `adapt` and `build`. It learns on features from the bank, through a trained bottleneck; the usual code
    fine-tunes the backbone, and so does `tune=all`. On a stream without a target it learns from the labelled images
    alone.
    """

    epochs: int = 20  # passes over the source
    bottleneck: int = 64  # features between tower and head
    trade_off: float = 1.0  # weight of what the target adds to the loss
    tune: Literal["head", "all"] = "head"  # what learns: the layers on the frozen tower, or the tower as well

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck")

    def reads(self) -> set[str]:
        return inputs_for(self.tune)

    def adapt(self, s: Step, outputs: AdaptingOutputs, target: Tensor, on_target: Tensor) -> Tensor:
        """What the target adds to the loss of a batch, a scalar.

        `target` are (B',width) features of the target's images, `on_target` their (B',K) logits.
        """
        raise NotImplementedError

    def loss(self, s: Step) -> Tensor:
        loss, outputs = super().loss(s), s.outputs_as(AdaptingOutputs)
        if outputs.target is None or outputs.on_target is None:
            return loss
        return loss + self.adapt(s, outputs, outputs.target, outputs.on_target)
