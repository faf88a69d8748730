"""RanPAC (McDonnell et al. 2023, arXiv:2307.02251)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from clsim import Backbone, State, StreamInfo, rng
from clsim.parts.first_session import FirstSession
from clsim.parts.learners import BankFeatures
from clsim.parts.ridge import RidgeHead
from clsim.strategies.aper import Aper, labelled_features


@dataclass(kw_only=True)
class RanPac(Aper):
    """RanPAC: ridge regression on a random projection of features. McDonnell et al. 2023, arXiv:2307.02251.

    Phase 1: a tuner is trained in the first experience as in APER; with `tuner=none` the tower stays frozen. Phase 2:
    after each experience the classifier is computed from sums over all images so far. The penalty is chosen in each
    experience on a fifth of its training images. The paper has 10,000 random features; time and memory grow with their
    square. Presets `official` and `official_imagenet_r` are the settings of the authors' code for these data sets.
    Their tables have a last accuracy of 92.2 on Split CIFAR-100 in 10 experiences with ViT-B/16 of ImageNet-21k, and of
    89.0 without phase 1.
    """

    projections: int = 2000  # random features; 0: no projection
    penalty: float = 0.0  # of the squared weights (lambda); 0: chosen in each experience

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {
            "projections": 10000,
            "normalise": False,
            "transforms": "torchvision",
            "crop_min": 0.05,
            "crop_interpolation": "bilinear",
            "interpolation": "bicubic",
            "test_crop": 1.0,
        },
        "official_imagenet_r": {
            "tuner": "ssf",
            "projections": 10000,
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
        self.at_least(0, "projections", "penalty")

    def reads(self) -> set[str]:
        return {"images"} if self.has_gradients else {"features"}

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        classifier = RidgeHead(backbone.image.out_dim, info.num_classes, self.projections)
        if not self.has_gradients:
            return FirstSession(BankFeatures(), None, classifier)
        return self.tuned(backbone, info, classifier, with_frozen=False)

    def fit(self, s: State) -> None:
        head = s.learner_as(FirstSession).classifier
        assert isinstance(head, RidgeHead)
        found = [*labelled_features(s)]
        features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])
        head.add(features, labels)
        order = torch.randperm(len(labels), generator=rng.generator(s.seed, "held out", s.experience.index))
        penalty = self.penalty or head.choose(features, labels, order.to(labels.device))
        s.log("penalty", penalty)
        head.solve(penalty)
