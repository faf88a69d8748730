"""Strategy: what the author of a plug-in reads first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clsim.events import Part, State


@dataclass(kw_only=True)
class Strategy(Part):
    """A way of learning. A plug-in is one dataclass below this one: its fields are its configuration.

    Write `build`; the rest has defaults. A field's comment is its help text (`clsim show NAME`), and `presets` names
    settings to choose with `--preset`. Check ranges in `__post_init__`: with `at_least`, or raise ValueError.
    """

    epochs: int = 5  # passes over each experience
    batch_size: int = 32  # images of the stream in a step
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # made anew for each experience
    lr: float = 1e-3  # learning rate
    schedule: Literal["constant", "cosine", "cosine_epochs"] = "constant"  # of lr in an experience: by step or epoch
    warmup_epochs: int = 0  # first epochs of an experience, at warmup_lr
    warmup_lr: float = 1e-5  # learning rate of the warm-up
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # of every trained parameter
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no bound
    mask: Literal["current", "seen", "all"] = "seen"  # classes that the training loss tells apart
    crop_min: float = 0.6  # smallest share of an image that a training crop keeps; 1: no crops

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    needs_text: ClassVar[bool] = False  # whether it takes a backbone with a text tower
    scores_unseen: ClassVar[bool] = False  # whether it can tell classes apart that it never trained on

    def __post_init__(self) -> None:
        self.at_least(1, "epochs", "batch_size")
        self.at_least(0, "lr", "warmup_epochs", "warmup_lr", "weight_decay", "clip_grad")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min must be above 0 and at most 1, not {self.crop_min}")

    def at_least(self, low: int, *names: str) -> None:
        """Raises ValueError if one of these fields has a value below `low`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, not {value}")

    def reads(self) -> set[str]:
        """What the learner looks at: "images", "features" (of the frozen tower, on clean images), or both."""
        return {"images"}

    def feature_views(self) -> int:
        """How many augmented views of each image training features come from; 0: they are of the clean image."""
        return 0

    def build(self, backbone: Any, info: Any) -> nn.Module:
        """The learner, a module that maps a Batch to (B, info.num_classes) logits.

        `backbone.image` is the image tower, frozen until `backbone.image.unfreeze()`; `backbone.text` the text tower,
        or None.
        """
        raise NotImplementedError

    def parts(self) -> Sequence[Part]:
        """Memories and regularisers that take part in training."""
        return ()

    def experiences(self, stream: Sequence[Any]) -> Sequence[Any]:
        """The training experiences in the order and shape in which they are learned."""
        return stream

    def loss(self, s: State) -> Tensor:
        """The scalar to minimise: by default cross-entropy over the classes that `mask` allows."""
        return cross_entropy(s, self.mask)

    def fit(self, s: State) -> None:
        """Learn an experience without gradients, from `s.clean_batches()`. Methods that define it take no steps."""
        raise NotImplementedError

    @property
    def has_gradients(self) -> bool:
        """Whether training takes steps of an optimizer, or calls `fit` once for each experience."""
        return type(self).fit is Strategy.fit

    @property
    def learning_rate(self) -> float:
        """The learning rate at the start of an experience."""
        return self.lr

    def learning_rate_at(self, epoch: int, step: int, per_epoch: int) -> float:
        """The learning rate at a step of an epoch, both counted from 0, with `per_epoch` steps in each.

        Behind the warm-up the cosine starts from its top, and would reach zero at `epochs` without one: so in the code
        of CoOp (Zhou et al. 2022, arXiv:2109.01134), where it moves once an epoch.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.schedule == "constant":
            return self.learning_rate
        done = epoch - self.warmup_epochs + (step / per_epoch if self.schedule == "cosine" else 0)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self.epochs))

    def caveats(self) -> list[str]:
        """What a reader of the results must know; goes into the summary's notes."""
        return []

    def configure_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over every parameter that asks for gradients."""
        trained = [p for p in learner.parameters() if p.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(trained, self.learning_rate, self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(trained, self.learning_rate, weight_decay=self.weight_decay)


def allowed_classes(s: State, mask: str) -> Tensor:
    """(B, num_classes) true where the loss may look at a logit.

    A replayed image belongs to an earlier experience: where the stream's images are masked to the current classes, it
    is told apart from all classes seen (as in ER-ACE, Caccia et al. 2022, arXiv:2104.05025).
    """
    assert s.batch is not None and s.logits is not None and s.experience is not None
    allowed = torch.zeros(s.logits.shape, dtype=torch.bool, device=s.logits.device)
    if mask == "all":
        return ~allowed
    current = s.seen if mask == "seen" else s.experience.classes
    stream = len(s.batch) - s.batch.replayed
    allowed[:stream, list(current)] = True
    allowed[stream:, list(s.seen)] = True
    return allowed


def cross_entropy(s: State, mask: str) -> Tensor:
    """Mean cross-entropy of the batch over the logits that `mask` allows."""
    assert s.batch is not None and s.logits is not None and s.batch.labels is not None
    logits = s.logits.masked_fill(~allowed_classes(s, mask), -torch.inf)
    return nn.functional.cross_entropy(logits, s.batch.labels)
