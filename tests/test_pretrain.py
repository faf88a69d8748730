"""Pretraining: repeatable, resumable, and a file that the backbone loads."""

import sys

import numpy as np
import pytest
import torch

from clsim.backbones.features import View
from clsim.backbones.load import load_backbone
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, resample
from clsim.errors import RequestError
from clsim.pretrain import vit_micro
from clsim.pretrain.teacher import Lessons, Teacher, efficientnet_lite0
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


# with a teacher


@pytest.fixture
def lessons(make_table, tmp_path):
    """Two views of 24 images, and a tiny network's features of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, classifier = torch.nn.Conv2d(3, 5, 4, stride=4), torch.nn.Linear(5, 7)
    views = [View(number, Augmentation(0.3)) for number in range(2)]
    table = make_table(num_classes=3, per_class=8, size=32)
    return Lessons(Teacher(network, classifier, 48), table, views, tmp_path / "cache")


TAUGHT = Recipe(epochs=3, batch_size=8, warmup_steps=2, views=2)


def taught(lessons, out, recipe=TAUGHT):
    return Pretraining(recipe, lessons.table, lessons.table, out, say=lambda text: None, lessons=lessons)


def test_teacher_and_student_see_the_same_crops(lessons):
    rows, student = np.array([3, 20, 7]), lessons.teacher.pixels
    images, features = lessons.batch(1, rows, student)
    assert images.shape == (3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(lessons.teacher(images), features)
    other, _ = lessons.batch(0, rows, student)
    assert not torch.equal(images, other), "each view has its own crops"
    whole = torch.tensor([[0.0, 32, 0, 32]]).expand(3, 4)
    assert not torch.equal(images, resample(torch.from_numpy(lessons.table.pixels(rows)), whole, student))


def test_a_student_that_predicts_the_teachers_features_has_nothing_to_learn_from_them(lessons, tmp_path):
    done = taught(lessons, tmp_path)
    done.imitation = torch.nn.Identity()
    features = torch.randn(4, 5)
    assert done._distance(features, features).item() == pytest.approx(0, abs=1e-6)
    assert done._distance(-features, features).item() > 2, "the cosine is -1, and the answers differ"


def test_a_taught_student_goes_on_to_the_same_file_and_loads(lessons, tmp_path):
    whole = taught(lessons, tmp_path / "whole").run()
    taught(lessons, tmp_path / "broken").run(stop=4)
    assert taught(lessons, tmp_path / "broken").run().read_bytes() == whole.read_bytes()
    other = Recipe(**vars(TAUGHT) | {"answers": 0.0})
    assert taught(lessons, tmp_path / "other", other).run().read_bytes() != whole.read_bytes()
    load_backbone("vit_micro", whole)


def test_the_teacher_needs_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RequestError, match=r"pip install 'clsim\[pretrain\]'"):
        efficientnet_lite0(128)
