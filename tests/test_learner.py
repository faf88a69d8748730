"""clsim.learner: how a strategy's learner is made."""

from dataclasses import dataclass

import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.data.streams import StreamInfo
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
