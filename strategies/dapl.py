"""DAPL: domain adaptation via prompt learning (Ge et al. 2022, arXiv:2202.06687)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clsim import Backbone, Outputs, Step, StreamInfo
from clsim.backbones.clip import TextTower
from clsim.bases import TextPrompts
from clsim.data.batches import Batch
from clsim.parts.text import TEMPLATE, Kept, TrainingStarted, class_features, cosine_logits, readable
from clsim.parts.text_prompts import PromptedText, Wording, new_context

SOURCE, TARGET = 0, 1


@dataclass(frozen=True, kw_only=True)
class DaplOutputs(Outputs):
    """Training outputs: logits for the prompts of both domains."""

    on_source: Tensor  # (B,2K) logits of the batch, source block first
    on_target: Tensor | None = None  # (B',2K) logits of its target images; None if it has none
    pseudo: Tensor | None = None  # (B',K) zero-shot logits of the target images


class DomainPrompts(nn.Module):
    """Image features from the bank, compared with two prompts per class: one for the source, one for the target.

    Until training starts, the class names are in the plain template.
    """

    plain: Tensor

    def __init__(self, text: TextTower, info: StreamInfo, how: "Dapl") -> None:
        super().__init__()
        # without a target, the stream is learned and predicted as a source
        self.block = TARGET if info.has_target else SOURCE
        domains = info.domain_names[:2] if len(info.domain_names) == 2 else ("photo", "photo")
        length = how.context_length + how.domain_length
        self.prompted = nn.ModuleList(
            PromptedText(text, Wording.of(text, info.class_names, length, ending=how.ending(domain)))
            for domain in domains
        )
        self.context = new_context(text, how.context_length, copies=(info.num_classes if how.class_specific else 1,))
        self.domain_context = new_context(text, how.domain_length, copies=(2,))
        self.class_specific = how.class_specific
        self.scale = text.logit_scale
        self.started = TrainingStarted()
        self.kept = Kept()
        self.register_buffer("plain", class_features(text, info.class_names, (TEMPLATE,)), persistent=False)

    def classes(self, block: int) -> Tensor:
        """(K,E) features of the classes with one domain's prompts."""
        domain = self.domain_context[block].expand(len(self.context), -1, -1)
        context, prompted = torch.cat([self.context, domain], dim=1), self.prompted[block]
        assert isinstance(prompted, PromptedText)
        found: Tensor = prompted.each(context) if self.class_specific else prompted(context)[0]
        return found

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        if not self.training:
            classes = self.kept(self, lambda: self.classes(self.block)) if self.started() else self.plain
            return Outputs(cosine_logits(features, classes, self.scale), features)
        both = torch.cat([self.classes(SOURCE), self.classes(TARGET)])
        on_source = cosine_logits(features, both, self.scale)
        logits = on_source.chunk(2, dim=1)[SOURCE]
        if batch.target is None:
            return DaplOutputs(logits, features, on_source=on_source)
        images = batch.target.known_features
        on_target, pseudo = (cosine_logits(images, classes, self.scale) for classes in (both, self.plain))
        return DaplOutputs(logits, features, on_source=on_source, on_target=on_target, pseudo=pseudo)


@dataclass(kw_only=True)
class Dapl(TextPrompts):
    """Domain adaptation via prompt learning: words for classes and for domains. Ge et al. 2022, arXiv:2202.06687.

    Target images are trained with pseudo labels from zero-shot CLIP, where it is confident. In the paper each softmax
    is over the prompts of both domains, which separates class and domain; in the released code it is over one domain's.
    Preset `release` is that code (LeapLabTHU/DAPrompt): its texts, its softmax, and its schedule, which counts steps in
    place of epochs, so that the rate falls and rises again every 50 steps. docs/differences.md has what remains.
    """

    context_length: int = 16  # learned vectors that both domains share
    domain_length: int = 16  # learned vectors of each domain
    class_specific: bool = False  # separate shared vectors for each class
    threshold: float = 0.5  # lowest zero-shot confidence for a pseudo label
    domain_contrast: Literal["both", "none"] = (
        "both"  # a softmax over both domains' prompts (paper), or one's (release)
    )
    wording: Literal["paper", "release"] = (
        "paper"  # texts end in ", a real world image.", or in ", a real_world image.." as in the released code
    )
    per_step: bool = False  # the schedule and its warm-up count steps in place of epochs
    epochs: int = 25  # passes over the source
    lr: float = 3e-3
    warmup_epochs: int = 0

    adapts: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "release": {
        "domain_contrast": "none", "wording": "release", "per_step": True, "warmup_epochs": 1, "drop_last": True,
    }}  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "context_length", "domain_length")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | {"mask": "its softmax is over all prompts"}

    def ending(self, domain: str) -> str:
        """The text after a class name."""
        if self.wording == "paper":
            return f", a {readable(domain)} image."
        return f", a {domain.replace(' ', '_').lower()} image.."

    def learning_rate_at(self, epoch: int, step: int, per_epoch: int) -> float:
        if self.per_step:
            epoch, step, per_epoch = epoch * per_epoch + step, 0, 1
        return super().learning_rate_at(epoch, step, per_epoch)

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return DomainPrompts(backbone.text_tower, info, self)

    def loss(self, s: Step) -> Tensor:
        outputs = s.outputs_as(DaplOutputs)
        loss = self._block_loss(outputs.on_source, s.batch.known_labels, SOURCE).mean()
        if outputs.on_target is None or outputs.pseudo is None:
            return loss
        sure, labels = outputs.pseudo.softmax(dim=1).max(dim=1)
        kept = sure >= self.threshold
        s.log("pseudo_labels_kept", kept.float().mean())
        # zero (not the mean of an empty set) if no image is kept
        losses = self._block_loss(outputs.on_target, labels, TARGET)
        return loss + (losses * kept).sum() / kept.sum().clamp(min=1)

    def _block_loss(self, logits: Tensor, labels: Tensor, block: int) -> Tensor:
        """(B,2K) logits, (B,) classes -> (B,) cross-entropies with the right prompt in that domain's block."""
        classes = logits.shape[1] // 2
        if self.domain_contrast == "both":
            chosen, right = logits, labels + block * classes
        else:
            chosen, right = logits.chunk(2, dim=1)[block], labels
        return cross_entropy(chosen, right, reduction="none", label_smoothing=self.label_smoothing)
