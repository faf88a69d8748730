"""Learners return what they computed and keep nothing of it."""

import pytest
import torch
from torch import nn

from clsim import plugins
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.outputs import as_outputs
from clsim.parts.text import Kept

STREAM = StreamInfo(("star", "ring", "arrow", "moon"), (), "class", 2)
PAIR = StreamInfo(("star", "ring", "arrow", "moon"), ("real", "sketch"), "pair", 1, has_target=True)
ADAPTING = ("dann", "cdan", "mcc", "dapl", "source_only")
CACHES = (Kept,)  # what is kept there depends on weights alone


def attributes(learner):
    """Everything that hangs on the learner's modules: objects, and of tensors how often each was written to."""
    found = {}
    for path, module in learner.named_modules():
        if isinstance(module, CACHES):
            continue
        for name, value in vars(module).items():
            inside = value if isinstance(value, dict) else {"": value}
            for key, each in inside.items():
                found[path, name, key] = each, each._version if isinstance(each, torch.Tensor) else None
    return found


def same(before, after):
    assert before.keys() == after.keys()
    return [
        key
        for key, (value, writes) in before.items()
        if not (value is after[key][0] or value == after[key][0]) or writes != after[key][1]
    ]


@pytest.mark.parametrize("name", plugins.names("strategies"))
def test_forward_stores_nothing_on_the_learner(name):
    torch.manual_seed(0)
    strategy = plugins.load("strategies", name)()
    backbone = load_backbone("clip_nano" if strategy.needs_text else "vit_nano")
    info = PAIR if name in ADAPTING else STREAM
    learner = strategy.build(backbone, info)
    strategy.begin(learner, ExperienceInfo(0, "first", (0, 1), 6))
    images = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        features = backbone.image(images)
    target = Batch(images, features) if info is PAIR else None
    batch = Batch(images, features, torch.arange(6) % 2, target=target)
    learner.train()
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()  # its running statistics are its purpose
    before = attributes(learner)
    returned = as_outputs(learner(batch))
    assert returned.logits.shape == (6, 4) and same(before, attributes(learner)) == []
    learner.eval()
    before = attributes(learner)
    with torch.no_grad():
        learner(Batch(images, features))
    assert same(before, attributes(learner)) == []


@pytest.mark.parametrize("name", plugins.names("strategies"))
def test_features_that_are_returned_have_a_row_for_each_image(name):
    strategy = plugins.load("strategies", name)()
    backbone = load_backbone("clip_nano" if strategy.needs_text else "vit_nano")
    learner = strategy.build(backbone, STREAM).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        outputs = as_outputs(learner(Batch(images, backbone.image(images))))
    assert outputs.features is not None and outputs.features.ndim == 2 and len(outputs.features) == 3
