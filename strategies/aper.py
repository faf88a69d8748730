"""APER, once called ADAM (Zhou et al. 2024, arXiv:2303.07338)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clsim import Backbone, ExperienceInfo, State, Strategy, StreamInfo
from clsim.backbones.towers import PLAIN, Tower, TunerHooks
from clsim.parts.first_session import AdaptFormer, FirstSession
from clsim.parts.heads import CosineHead, PrototypeHead
from clsim.parts.learners import BankFeatures, TunedImage
from clsim.parts.tuners import Prompts, Tokens, require_blocks, visual_bound
from clsim.strategies.ssf import ScaleShift
from clsim.strategy import Optimizer, Schedule


@dataclass(kw_only=True)
class Aper(Strategy):
    """APER: a tower tuned in the first experience, next to the frozen one; cosine to the class means of both.

    Zhou et al. 2024, arXiv:2303.07338. In the first experience a tuner is trained with a cosine head. Then it stays as
    it is: a class is the mean of its clean images' features, those of the frozen tower followed by those of the tuned.
    Preset `pilot` has the authors' pixels and crops (LAMDA-PILOT), `pilot_finetune` also their recipe for all weights.
    """

    tuner: Literal["none", "adapter", "ssf", "vpt_deep", "vpt_shallow", "finetune"] = (
        "adapter"  # what is trained in the first experience; none: nothing, and the frozen tower's features are used
    )
    bottleneck: int = 64  # features of the adapter (AdaptFormer) in each block
    prompt_length: int = 5  # tokens of vpt_deep in each block, or of vpt_shallow
    epochs: int = 20  # passes over the first experience
    batch_size: int = 48
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "cosine_epochs"
    weight_decay: float = 5e-4

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pilot": {
            "normalise": False,
            "transforms": "torchvision",
            "crop_min": 0.05,
            "crop_interpolation": "bilinear",
            "interpolation": "bicubic",
            "test_crop": 0.875,
        },
        "pilot_finetune": {
            "tuner": "finetune",
            "epochs": 6,
            "batch_size": 128,
            "weight_decay": 0.05,
            "normalise": False,
            "transforms": "torchvision",
            "crop_min": 0.05,
            "crop_interpolation": "bilinear",
            "interpolation": "bicubic",
            "test_crop": 0.875,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bottleneck", "prompt_length")

    @property
    def has_gradients(self) -> bool:
        """Whether a tuner is trained."""
        return self.tuner != "none"

    def reads(self) -> set[str]:
        return {"images", "features"} if self.has_gradients else {"features"}

    def unused(self, info: StreamInfo) -> dict[str, str]:
        found = {} if self.tuner == "adapter" else {"bottleneck": f"tuner={self.tuner} has none"}
        found |= {} if self.tuner.startswith("vpt") else {"prompt_length": f"tuner={self.tuner} has no prompts"}
        return super().unused(info) | found

    def tune(self, tower: Tower) -> TunerHooks:
        """The hooks of the chosen tuner."""
        require_blocks(tower)
        if self.tuner == "finetune":
            tower.requires_grad_()
            return PLAIN
        if self.tuner == "ssf":
            return ScaleShift(tower, spread=0.02)
        if self.tuner == "adapter":
            return AdaptFormer(tower, self.bottleneck)
        sets = tower.depth if self.tuner == "vpt_deep" else 1
        return Prompts(Tokens(sets, self.prompt_length, tower.width, visual_bound(tower)))

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        width = backbone.image.out_dim
        if not self.has_gradients:
            return FirstSession(BankFeatures(), None, PrototypeHead(width, info.num_classes))
        return self.tuned(backbone, info, PrototypeHead(2 * width, info.num_classes), with_frozen=True)

    def tuned(self, backbone: Backbone, info: StreamInfo, classifier: nn.Module, with_frozen: bool) -> FirstSession:
        """The learner that trains the tuner with a cosine head and then has this classifier."""
        tower = backbone.image
        head = CosineHead(tower.out_dim, info.num_classes)
        return FirstSession(TunedImage(tower, self.tune(tower)), head, classifier, with_frozen)

    def epochs_for(self, experience: ExperienceInfo) -> int:
        return self.epochs if self.has_gradients and experience.index == 0 else 0

    def fit(self, s: State) -> None:
        means = s.learner_as(FirstSession).classifier
        assert isinstance(means, PrototypeHead)
        for features, labels in labelled_features(s):
            means.add(features, labels)


def labelled_features(s: State) -> Iterator[tuple[Tensor, Tensor]]:
    """(B,D) float32 input features of the classifier and (B,) labels, for the experience's clean images."""
    for batch in s.clean_batches():
        features = s.outputs(batch).features
        assert features is not None
        yield features.float(), batch.known_labels
