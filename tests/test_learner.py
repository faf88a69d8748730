"""clsim.learner: how a strategy's learner is made."""

from dataclasses import dataclass

import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.data.streams import StreamInfo
from clsim.data.transforms import Augmentation, InputSpec
from clsim.errors import RequestError
from clsim.learner import build_learner
from clsim.strategies.linear import Linear
from clsim.strategy import Strategy


def build(strategy):
    info = StreamInfo(("a", "b"), (), "class", 2)
    return build_learner(strategy, load_backbone("vit_nano", None), info, 0, torch.device("cpu"), False)


@pytest.mark.parametrize("named", [{"feature"}, {"images", "pixels"}, set()])
def test_an_unknown_input_is_an_error_that_names_the_known_ones(named):
    @dataclass(kw_only=True)
    class Misspelled(Linear):
        def reads(self):
            return named

    with pytest.raises(RequestError, match=r'Misspelled\.reads must return \{"images"\}, \{"features"\} or both'):
        build(Misspelled())


def test_a_strategy_without_build_says_what_it_lacks():
    @dataclass(kw_only=True)
    class Empty(Strategy):
        pass

    with pytest.raises(RequestError, match=r"Empty has no method build\(self, backbone, info\)"):
        build(Empty())


def test_images_are_resized_as_the_backbone_wants_unless_a_field_says_otherwise():
    clip = InputSpec(224, (0.5,) * 3, (0.2,) * 3, 1.0, "bicubic")
    assert Strategy().inputs_of(clip) == clip and Strategy().inputs_of(InputSpec(224)) == InputSpec(224)
    found = Strategy(interpolation="bilinear", test_crop=0.9, normalise=False, transforms="torchvision").inputs_of(clip)
    assert found == InputSpec(224, (0.0,) * 3, (1.0,) * 3, 0.9, "bilinear", eight_bit=True)
    backbone = load_backbone("vit_nano", None)
    backbone.image.pixels = clip
    info = StreamInfo(("a", "b"), (), "class", 2)
    build_learner(Linear(test_crop=0.5), backbone, info, 0, torch.device("cpu"), False)
    assert backbone.image.pixels == InputSpec(224, (0.5,) * 3, (0.2,) * 3, 0.5, "bicubic")


def test_training_crops_may_have_another_interpolation_than_evaluation():
    assert Strategy().augmentation(True) == Augmentation(0.6, True)
    strategy = Strategy(crop_min=0.05, transforms="tensorflow", interpolation="bicubic", crop_interpolation="bilinear")
    assert strategy.augmentation(False) == Augmentation(0.05, False, "tensorflow", "bilinear")


def test_a_central_crop_has_a_share_between_zero_and_one():
    with pytest.raises(ValueError, match="test_crop must be between 0 and 1, not 1.5"):
        Strategy(test_crop=1.5)
