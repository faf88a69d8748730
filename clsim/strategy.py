"""Strategy: the base class of all methods. Authors of plug-ins read this file first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import checked, field_reads
from clsim.backbones.towers import Tower
from clsim.data.transforms import Augmentation, InputSpec, Transforms
from clsim.events import Part, State, Step

if TYPE_CHECKING:
    from clsim.backbones.load import Backbone
    from clsim.data.streams import Experience, ExperienceInfo, StreamInfo

MOST_EPOCHS = 1_000_000
MOST_IMAGES = 1_000_000  # in a batch
MOST_RATE = 1e30  # optimizers divide rates by small numbers, and the result must be a number in float32
OF_STEPS = (
    *("optimizer", "lr", "head_lr", "backbone_lr", "schedule", "warmup_epochs", "warmup_lr", "momentum"),
    *("weight_decay", "clip_grad", "mask", "label_smoothing", "drop_last", "crop_min"),
    "crop_interpolation",
)  # fields that only training steps use
OF_OPTIMIZER = ("optimizer", "lr", "head_lr", "backbone_lr", "momentum", "weight_decay")
Mask = Literal["current", "seen", "all"]
Schedule = Literal["constant", "cosine", "cosine_epochs", "quarter_cosine"]
Optimizer = Literal["adam", "adamw", "sgd"]


@dataclass(kw_only=True)
class Strategy(Part):
    """A method. A plug-in is one dataclass that inherits from this class; its fields are its configuration.

    Write `build`; all other methods have defaults. A field's comment is its help text (`clsim show NAME`). `presets`
    contains named settings for `--preset`. Check ranges in `__post_init__`: use `at_least`, or raise ValueError.
    """

    epochs: int = 5  # passes over each experience
    batch_size: int = 32  # images of the stream in a step
    optimizer: Optimizer = "adam"  # re-created for each experience
    lr: float = 1e-3  # learning rate
    head_lr: float = 1.0  # learning rate of the classifier (modules called head or heads) as a factor of lr
    backbone_lr: float = 1.0  # learning rate of the backbone's own weights, if they learn, as a factor of lr
    schedule: Schedule = "constant"  # of lr within an experience, per step or per epoch
    warmup_epochs: int = 0  # number of first epochs of an experience that use warmup_lr
    warmup_lr: float = 1e-5  # learning rate during the warm-up
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # of every trained parameter
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no limit
    mask: Mask = "seen"  # classes included in the training loss's softmax
    label_smoothing: float = 0.0  # share of the target that is spread evenly over the classes in the softmax
    drop_last: bool = False  # leave out the last batch of an epoch if it is smaller than the others
    crop_min: float = 0.6  # smallest share of an image that a training crop keeps; 1: no crops
    transforms: Transforms = (
        "smooth"  # torchvision, tensorflow: crops as by these libraries; torchvision also rounds pixels to 8 bits
    )
    interpolation: Literal["backbone", "bilinear", "bicubic"] = (
        "backbone"  # how images are resized; backbone: bicubic for CLIP's published weights, else bilinear
    )
    crop_interpolation: Literal["same", "bilinear", "bicubic"] = "same"  # how training crops are resized
    test_crop: float = 0.0  # share of the shorter side that evaluation sees, from the centre; 0: the backbone's
    normalise: bool = True  # normalise pixels as in the backbone's training; no: pixels in [0, 1]
    test_classes: Literal["seen", "all"] = "seen"  # classes that are compared in evaluation

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    needs_text: ClassVar[bool] = False  # whether it needs a backbone with a text tower
    scores_unseen: ClassVar[bool] = False  # whether it can classify among classes that it was not trained on
    adapts: ClassVar[bool] = False  # whether it also learns from an unlabelled target, if the stream has one

    def __post_init__(self) -> None:
        self.at_least(1, "epochs", "batch_size")
        self.at_least(0, "lr", "head_lr", "backbone_lr", "warmup_epochs", "warmup_lr", "weight_decay", "clip_grad")
        self.at_most(MOST_EPOCHS, "epochs")
        self.at_most(MOST_IMAGES, "batch_size")
        self.at_most(MOST_RATE, "lr", "head_lr", "backbone_lr", "warmup_lr", "weight_decay")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min must be above 0 and at most 1, not {self.crop_min}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.test_crop <= 1:
            raise ValueError(f"test_crop must be between 0 and 1, not {self.test_crop}")

    def at_least(self, low: int, *names: str) -> None:
        """Raises ValueError if one of these fields has a value below `low`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, not {value}")

    def at_most(self, high: float, *names: str) -> None:
        """Raises ValueError if one of these fields has a value above `high`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value > high:
                raise ValueError(f"{name} must be at most {high}, not {value}")

    # what it needs

    def reads(self) -> set[str]:
        """The input of the learner: "images", "features" (of the frozen tower, on clean images), or both."""
        return {"images"}

    def feature_views(self) -> int:
        """The number of augmented views of each image for training features; 0: features of the clean image."""
        return 0

    def augmentation(self, flip: bool) -> Augmentation:
        """How training images are cropped, and with `flip` mirrored."""
        own = None if self.crop_interpolation == "same" else self.crop_interpolation
        return Augmentation(self.crop_min, flip, self.transforms, own)

    def inputs_of(self, pixels: InputSpec) -> InputSpec:
        """The images for a tower that expects `pixels`, with this strategy's resizing and normalisation."""
        found = replace(pixels, eight_bit=self.transforms == "torchvision", crop=self.test_crop or pixels.crop)
        if self.interpolation != "backbone":
            found = replace(found, interpolation=self.interpolation)
        return found if self.normalise else replace(found, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def has_gradients(self) -> bool:
        """Whether training takes optimizer steps; false for a strategy that overrides `fit` but not `epochs_for`."""
        own = type(self)
        return own.fit is Strategy.fit or own.epochs_for is not Strategy.epochs_for

    @property
    def needs_boundaries(self) -> bool:
        """Whether it must know where an experience begins and ends.

        True if it uses boundaries: the mask "current", its own life cycle, parts that handle experiences. A part that
        works without boundaries has an attribute `needs_boundaries = False`.
        """
        own = type(self)
        life_cycle = any(
            getattr(own, name) is not getattr(Strategy, name) for name in ("begin", "epochs_for", "rows_for", "fit")
        )
        handlers = any(hasattr(own, name) for name in ("before_training_exp", "after_training_exp"))
        return self.mask == "current" or life_cycle or handlers or any(map(waits_for_boundaries, self.parts()))

    # the learner and its life cycle

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        """Make the learner: a module that maps a Batch to Outputs, or to (B, info.num_classes) logits.

        `backbone.image` is the image tower, `backbone.text` the text tower or None. Both are frozen; call
        `backbone.image.requires_grad_()` to train one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build(self, backbone, info)")

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        """Prepare the learner for an experience, before its optimizer is made: add a head, choose what learns.

        Called once for each experience, in order. When a run is resumed or loaded, it is called again for every
        experience begun so far, and the saved weights are loaded afterwards. So it must depend only on its arguments.
        Random numbers come from the experience's own random stream.
        """

    def epochs_for(self, experience: ExperienceInfo) -> int:
        """Passes over this experience; 0: no gradient steps. By default `epochs`, or 0 if only `fit` is overridden."""
        return self.epochs if self.has_gradients else 0

    def rows_for(self, s: State) -> NDArray[np.int64]:
        """(n,) rows of the training table that an experience's epochs learn: by default those of `s.experience`.

        Exemplars of earlier classes may be added, or a memory may take their place. From then on `s.experience` has
        these rows. A resumed run calls it again in the middle of the experience, and it must return the same.
        """
        return s.experience.rows

    def fit(self, s: State) -> None:
        """Learn without gradients, after the epochs of an experience, from `s.clean_batches()`.

        It runs in float32, whatever the run's precision: only `s.forward` and `s.outputs` use that.
        """

    def parts(self) -> Sequence[Part]:
        """Memories and regularisers that take part in training."""
        return ()

    def experiences(self, stream: Sequence[Experience]) -> Sequence[Experience]:
        """The training experiences in the order and shape in which they are learned."""
        return stream

    def loss(self, s: Step) -> Tensor:
        """The scalar to minimise: by default cross-entropy over the classes that `mask` allows."""
        return cross_entropy(s, self.mask, self.label_smoothing)

    def caveats(self) -> list[str]:
        """Warnings for readers of the results; they are added to the summary's notes."""
        return []

    # whether it fits the stream

    def lacks(self, info: StreamInfo) -> list[str]:
        """What the method would use and the stream does not have: shown before training and in the summary's notes."""
        if self.adapts and not info.has_target:
            return ["this stream has no unlabelled target to adapt to, so it learns from labelled images alone"]
        return []

    def unused(self, info: StreamInfo) -> dict[str, str]:
        """Fields that change nothing on this stream, with the other fields as they are -> why; refused if they are set.

        A field of the base class counts as used if the method's own file reads it.
        """
        own, found = type(self), dict[str, str]()
        crops = ["crop_min", "crop_interpolation"]
        crops += ["transforms"] if self.transforms == "tensorflow" else []  # torchvision's also round evaluation images
        if not self.has_gradients:
            found |= dict.fromkeys((*OF_STEPS, *crops), "it takes no training steps")
        elif "images" not in checked.inputs(self) and not self.feature_views():
            found |= dict.fromkeys(crops, "it learns from features of whole images")
        if self.optimizer != "sgd":
            found.setdefault("momentum", f"optimizer={self.optimizer} has none")
        if self.warmup_epochs == 0:
            found.setdefault("warmup_lr", "warmup_epochs is 0")
        elif self.warmup_epochs >= self.epochs and own.learning_rate_at is Strategy.learning_rate_at:
            why = f"warmup_epochs={self.warmup_epochs} leaves none of {self.epochs} epochs for it"
            found = dict.fromkeys(("lr", "schedule"), why) | found
        if own.configure_optimizer is not Strategy.configure_optimizer:  # it may read any of them, anywhere
            found = {name: why for name, why in found.items() if name not in OF_OPTIMIZER}
        read = field_reads.of_class(own, Strategy)
        return {name: why for name, why in found.items() if name not in read}

    # the optimizer

    @property
    def learning_rate(self) -> float:
        """The learning rate at the start of an experience."""
        return self.lr

    def learning_rate_at(self, epoch: int, step: int, per_epoch: int) -> float:
        """The learning rate at a step of an epoch, both counted from 0, with `per_epoch` steps in each.

        After the warm-up the cosine schedule starts at its maximum; without a warm-up it would reach zero after
        `epochs`. This is as in the code of CoOp (Zhou et al. 2022, arXiv:2109.01134), which changes it once an epoch.
        The quarter cosine is that of CODA-Prompt's code: once an epoch, and 99 % of a quarter turn at the last one.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "quarter_cosine":
            last = max(1, self.epochs - self.warmup_epochs - 1)
            return self.learning_rate * math.cos(0.99 * math.pi / 2 * (epoch - self.warmup_epochs) / last)
        done = epoch - self.warmup_epochs + (step / per_epoch if self.schedule == "cosine" else 0)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self.epochs))

    def configure_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over all parameters that require gradients.

        A group may have its own rate: the schedule multiplies all rates by the same factor. On a GPU one kernel updates
        all parameters.
        """
        groups = self.parameter_groups(learner)
        fused = True if {p.device.type for group in groups for p in group["params"]} == {"cuda"} else None
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                groups, self.learning_rate, self.momentum, weight_decay=self.weight_decay, fused=fused
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.learning_rate, weight_decay=self.weight_decay, fused=fused)

    def parameter_groups(self, learner: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters with their rates: of the backbone, of the classifier, and all others."""
        if self.head_lr == self.backbone_lr == 1:
            return [{"params": [p for p in learner.parameters() if p.requires_grad]}]
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter, field in rate_fields(learner):
            groups.setdefault(getattr(self, field) if field else 1.0, []).append(parameter)
        return [{"params": group, "lr": factor * self.learning_rate} for factor, group in groups.items()]


def rate_fields(learner: nn.Module) -> list[tuple[nn.Parameter, str]]:
    """Each trained parameter with the field that is a factor of its rate: "backbone_lr", "head_lr", or none ("")."""
    inside = {id(p) for module in learner.modules() if isinstance(module, Tower) for p in module.parameters()}
    found = []
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            of_head = not {"head", "heads"}.isdisjoint(name.split("."))
            field = "backbone_lr" if id(parameter) in inside else "head_lr" if of_head else ""
            found.append((parameter, field))
    return found


def waits_for_boundaries(part: Part) -> bool:
    """Whether a part must know where an experience begins or ends."""
    handlers = hasattr(part, "before_training_exp") or hasattr(part, "after_training_exp")
    return bool(getattr(part, "needs_boundaries", handlers))


def allowed_classes(s: Step, mask: str) -> Tensor:
    """(B, num_classes) true where the loss includes a logit.

    A replayed image belongs to an earlier experience. If the stream's images are masked to the current classes, the
    softmax of a replayed image includes all classes seen (as in ER-ACE, Caccia et al. 2022, arXiv:2104.05025).
    """
    if mask == "all":
        return torch.ones_like(s.logits, dtype=torch.bool)
    seen = s.class_mask(s.seen).expand(len(s.batch), -1)
    stream = len(s.batch) - s.batch.replayed
    if mask == "seen" or not stream:
        return seen
    current = s.class_mask(s.experience.classes).expand(stream, -1)
    return torch.cat([current, seen[stream:]])


def cross_entropy(s: Step, mask: str, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the batch over the logits that `mask` allows; label smoothing is over the same logits."""
    allowed = allowed_classes(s, mask)
    logits = s.logits.masked_fill(~allowed, -torch.inf)
    loss = nn.functional.cross_entropy(logits, s.batch.known_labels)
    if not smoothing:
        return loss
    # smoothing by the torch function would include masked logits
    log_odds = logits.log_softmax(dim=1).masked_fill(~allowed, 0.0)
    return (1 - smoothing) * loss - smoothing * (log_odds.sum(dim=1) / allowed.sum(dim=1)).mean()
