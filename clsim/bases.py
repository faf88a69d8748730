"""Base classes of strategies: code that several methods share, so that each method's file holds only its own part."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower, TunerHooks
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.events import Step
from clsim.parts.adaptation import AdaptingOutputs, inputs_for
from clsim.parts.heads import HeadStart
from clsim.parts.learners import Where, tuned
from clsim.parts.prompt_pools import Progress
from clsim.parts.text import start_training
from clsim.strategy import MOST_RATE, Mask, Optimizer, Schedule, Strategy


@dataclass(kw_only=True)
class Tuner(Strategy):
    """A method that adds a tuner to a frozen image tower, with a linear head. Write `tune`."""

    def tune(self, tower: Tower) -> TunerHooks:
        """The hooks that are added to a tower; PLAIN if weights of the tower learn and nothing is added."""
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
        """True if class names are read by the text tower."""
        return self.tower != "image"

    @property
    def scores_unseen(self) -> bool:  # type: ignore[override]
        """True if it classifies by class names."""
        return self.needs_text

    def reads(self) -> set[str]:
        return {"features"} if self.tower == "text" else {"images"}

    def texts(self, backbone: Backbone, info: StreamInfo) -> nn.Module | None:
        """A module that returns (K,E) features of the classes; None: the tuned tower reads the class names."""
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

    lr_base: float = (
        0.0  # learning rate for a batch of 256 images, scaled with the batch size; 0: lr, otherwise refused
    )
    mask: Mask = "current"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "lr_base")
        self.at_most(MOST_RATE, "lr_base")

    def reads(self) -> set[str]:
        return {"images", "features"}

    def unused(self, info: StreamInfo) -> dict[str, str]:
        why = f"lr_base={self.lr_base} sets the rate for a batch of 256 images; set lr_base, or lr_base=0 and lr"
        return super().unused(info) | ({"lr": why} if self.lr_base else {})

    @property
    def learning_rate(self) -> float:
        return self.lr_base * self.batch_size / 256 if self.lr_base > 0 else self.lr

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        for module in learner.modules():
            if isinstance(module, Progress):
                module.begin(experience.index)


@dataclass(kw_only=True)
class KeyedPools(PromptPools):
    """Prompts that are selected or weighted by keys. The learner has a `tower` and a `head`. Write `build`.

    Published code takes the query of a training image from its crop, and differs in how heads start. The code of the
    authors of L2P and DualPrompt also counts the gradients of frozen weights when it limits the gradient's norm.
    """

    query: Literal["clean", "augmented"] = "clean"  # the image used as query in training
    head_init: HeadStart = "uniform"  # how the head starts: uniform up to 1/sqrt(width), N(0, 0.02^2), or zero
    clip_over: Literal["trained", "all"] = "trained"  # weights whose gradients clip_grad counts; all: frozen ones, too

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | ({} if self.clip_grad else {"clip_over": "clip_grad=0 sets no limit"})

    def before_forward(self, s: Step) -> None:
        if self.clip_over == "all":
            self._tower(s).requires_grad_()

    def after_backward(self, s: Step) -> None:
        if self.clip_over == "all":
            if self.clip_grad > 0:  # so the loop's own limit, on trained weights only, has nothing left to do
                nn.utils.clip_grad_norm_(s.learner.parameters(), self.clip_grad)
            tower = self._tower(s).requires_grad_(False)
            for parameter in tower.parameters():
                parameter.grad = None

    @staticmethod
    def _tower(s: Step) -> Tower:
        tower = s.learner.tower
        assert isinstance(tower, Tower)
        return tower


@dataclass(kw_only=True)
class TextPrompts(Strategy):
    """Learned words around class names, read by CLIP's frozen text tower; image features come from the bank.

    The recipe is that of CoOp (Zhou et al. 2022, arXiv:2109.01134). Write `build`.
    """

    optimizer: Optimizer = "sgd"
    lr: float = 2e-3
    schedule: Schedule = "cosine_epochs"
    warmup_epochs: int = 1
    weight_decay: float = 5e-4
    views: int = 0  # augmented views of each image for training, computed once; 0: the clean image only

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
    """Learning from a labelled source, while features or predictions of an unlabelled target are aligned with it.

    Write `adapt` and `build`. It learns on features from the bank, through a trained bottleneck. The usual code
    fine-tunes the backbone; `tune=all` does this, too. On a stream without a target it learns from the labelled images
    only.
    """

    epochs: int = 20  # passes over the source
    bottleneck: int = 64  # features between tower and head
    trade_off: float = 1.0  # weight of the target's term in the loss
    tune: Literal["head", "all"] = "head"  # what learns: the layers on the frozen tower (head), or the tower, too (all)

    adapts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck")
        self.at_least(0, "trade_off")

    def reads(self) -> set[str]:
        return inputs_for(self.tune)

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | ({} if info.has_target else {"trade_off": "this stream has no unlabelled target"})

    def adapt(self, s: Step, outputs: AdaptingOutputs, target: Tensor, on_target: Tensor) -> Tensor:
        """The target's term in the loss of a batch, a scalar.

        `target`: (B',width) features of the target's images; `on_target`: their (B',K) logits.
        """
        raise NotImplementedError

    def loss(self, s: Step) -> Tensor:
        loss, outputs = super().loss(s), s.outputs_as(AdaptingOutputs)
        if outputs.target is None or outputs.on_target is None:
            return loss
        return loss + self.adapt(s, outputs, outputs.target, outputs.on_target)
