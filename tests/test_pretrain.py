"""Pretraining: repeatable, resumable, and a file that the backbone loads."""

import numpy as np
import pytest
import torch

from clsim.backbones.load import load_backbone
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.pretrain import vit_micro
from clsim.pretrain.trainer import features_with_drop, learning_rate_factor
from clsim.pretrain.vit_micro import Pretraining, Recipe

RECIPE = Recipe(epochs=2, batch_size=8, warmup_steps=2)


def job(make_table, out, recipe=RECIPE):
    table = make_table(num_classes=3, per_class=8, size=32)  # 3 steps an epoch
    return Pretraining(recipe, table, table, out, say=lambda text: None)


def test_same_seed_same_file(make_table, tmp_path):
    a, b = (job(make_table, tmp_path / name).run().read_bytes() for name in "ab")
    assert a == b


def test_interrupted_it_goes_on_to_the_same_file(make_table, tmp_path):
    whole = job(make_table, tmp_path / "whole").run().read_bytes()
    job(make_table, tmp_path / "broken").run(stop=4)  # into the second epoch, where no token is left out any more
    second = job(make_table, tmp_path / "broken")
    assert second.trainer.step == 4
    assert second.run().read_bytes() == whole


def test_another_recipe_does_not_go_on(make_table, tmp_path):
    job(make_table, tmp_path).run(stop=1)
    with pytest.raises(RequestError, match="another recipe"):
        job(make_table, tmp_path, Recipe(epochs=3, batch_size=8))


def test_the_weights_load(make_table, tmp_path):
    done = job(make_table, tmp_path)
    tower = load_backbone("vit_micro", done.run()).image
    trained = done.tower.vit.state_dict()
    assert all(torch.equal(t, trained[k].half().to(t.dtype)) for k, t in tower.vit.state_dict().items())


def test_learning_rate_rises_and_falls_in_straight_lines():
    assert [learning_rate_factor(step, 10, 4) for step in range(10)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )


def test_token_drop_keeps_prefix_and_the_share_asked_for(monkeypatch):
    tower = load_backbone("vit_nano").image
    lengths = []
    encode = tower.encode
    monkeypatch.setattr(tower, "encode", lambda tokens, *rest: lengths.append(tokens.shape[1]) or encode(tokens, *rest))
    images = torch.zeros(2, 3, 16, 16)
    features_with_drop(tower, images, 0.5, torch.Generator())
    features_with_drop(tower, images, 0.0, torch.Generator())
    assert lengths == [1 + 8, 1 + 16]


def test_quality_of_features_that_tell_the_classes_apart(make_table, tmp_path):
    table = make_table(num_classes=3, per_class=40, size=16)
    images = np.broadcast_to((table.labels * 100)[:, None, None, None], table.images.shape).astype(np.uint8)
    easy = ImageTable.from_arrays(images.copy(), table.labels, table.class_names)
    found = vit_micro.quality(load_backbone("vit_nano").image, easy, easy, tmp_path)
    assert found == {"linear_probe": 1.0, "nearest_class_mean": 1.0}
