"""clsim.prediction and clsim.given_images: predictions for images in every form that people have."""

import json
import os
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clsim
from clsim.errors import RequestError
from clsim.given_images import GivenImages

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return finished("linear", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def images():
    """(N,3,8,8) uint8 pictures of the toy scenario's size."""
    return np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)


def as_float(images):
    return images.astype(np.float32) / 255


def channels_last(images):
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def as_pillow(images):
    return [Image.fromarray(each) for each in channels_last(images)]


FORMS = {
    "float32": as_float,
    "float64": lambda images: images / 255.0,
    "channels last": channels_last,
    "float, channels last": lambda images: channels_last(as_float(images)),
    "a list of arrays": list,
    "a tuple of arrays, channels last": lambda images: tuple(channels_last(images)),
    "tensor": torch.from_numpy,
    "float tensor": lambda images: torch.from_numpy(as_float(images)),
    "tensor with gradient": lambda images: torch.from_numpy(as_float(images)).requires_grad_(),
    "a list of tensors": lambda images: list(torch.from_numpy(images)),
    "Pillow": as_pillow,
    "Pillow, with transparency": lambda images: [each.convert("RGBA") for each in as_pillow(images)],
    "a generator": lambda images: iter(as_pillow(images)),
    "mixed": lambda images: [as_pillow(images[:1])[0], torch.from_numpy(images[1]), *channels_last(images[2:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_images_has_the_same_scores(run, images, form):
    np.testing.assert_array_equal(run.scores(FORMS[form](images)), run.scores(images))
    assert run.predict(FORMS[form](images)).tolist() == run.predict(images).tolist()


def test_files_have_the_scores_of_their_pixels(run, images, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, as_pillow(images), strict=True):
        image.save(path)
    wanted = run.scores(images)
    np.testing.assert_array_equal(run.scores(paths), wanted)
    np.testing.assert_array_equal(run.scores([str(path) for path in paths]), wanted)
    np.testing.assert_array_equal(run.scores(str(paths[3])), wanted[3:4])
    np.testing.assert_array_equal(run.scores(paths[4]), wanted[4:5])


def test_one_image_is_a_batch_of_one(run, images):
    wanted = run.scores(images[:1])
    for single in (images[0], channels_last(images)[0], as_float(images)[0], torch.from_numpy(images[0])):
        np.testing.assert_array_equal(run.scores(single), wanted)
    assert run.predict(as_pillow(images)[0]).shape == (1,)


def test_grey_images_have_three_equal_channels(run, images):
    grey = images[:, :1]
    wanted = run.scores(np.repeat(grey, 3, axis=1))
    for form in (grey, grey.transpose(0, 2, 3, 1), list(grey[:, 0]), [Image.fromarray(each[0]) for each in grey]):
        np.testing.assert_array_equal(run.scores(form), wanted)
    np.testing.assert_array_equal(run.scores(grey[0, 0]), wanted[:1])


def test_images_of_another_size_are_stored_like_those_of_the_table(run, images, tmp_path):
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    centre = wide.resize((8, 8), Image.Resampling.BICUBIC, box=(10, 0, 30, 20))
    wide.save(tmp_path / "wide.png")
    wanted = run.scores(centre)
    for form in (wide, tmp_path / "wide.png", np.asarray(wide), np.asarray(wide).transpose(2, 0, 1)):
        np.testing.assert_array_equal(run.scores(form), wanted)
    together = run.scores([images[0], wide, images[1]])
    np.testing.assert_allclose(together[[0, 2]], run.scores(images[:2]), atol=1e-4)
    np.testing.assert_allclose(together[1:2], wanted, atol=1e-4)


def test_a_run_without_a_recorded_size_takes_images_of_one_size(images):
    assert GivenImages(images).take(0, 3).tolist() == images[:3].tolist()
    with pytest.raises(RequestError, match="give images of one size, not 5x5 and 8x8"):
        GivenImages([images[0], np.zeros((5, 5), np.uint8)]).take(0, 2)


@pytest.mark.parametrize("size", [1, 10, 64, 65, 1000])
def test_the_batch_size_changes_no_score(run, size):
    many = np.random.default_rng(2).integers(0, 256, (150, 3, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(run.scores(many, batch_size=size), run.scores(many))


REFUSED = {
    "normalised": (np.full((2, 3, 8, 8), -1.5, np.float32), "float values from -1.5 to -1.5, not in [0, 1]"),
    "bytes as floats": (np.full((2, 3, 8, 8), 254.0), "values up to 255 are given as uint8"),
    "NaN": (np.full((3, 8, 8), np.nan), "not finite"),
    "infinite": (np.full((2, 3, 8, 8), np.inf), "not finite"),
    "int64": (np.zeros((2, 3, 8, 8), np.int64), "int64, whose range is not known"),
    "bool": (np.zeros((8, 8), bool), "bool, whose range is not known"),
    "uint16": (np.zeros((8, 8), np.uint16), "uint16, whose range is not known"),
    "objects": (np.array([None, "x"]), "object, whose range is not known"),
    "complex": (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64, whose range is not known"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2) has no axis of 1 or 3 channels"),
    "two possible layouts": (np.zeros((3, 5, 3), np.uint8), "(3, 5, 3): the channels may be the first or the last"),
    "grey or colour": (np.zeros((1, 8, 3), np.uint8), "the channels may be the first or the last"),
    "a batch of two possible layouts": (np.zeros((4, 3, 5, 3), np.uint8), "the channels may be the first or the last"),
    "five axes": (np.zeros((1, 1, 3, 8, 8), np.uint8), "one image has 2 or 3 axes"),
    "one axis": (np.zeros(8, np.uint8), "one image has 2 or 3 axes"),
    "no images": ([], "there is no image"),
    "an empty array": (np.zeros((0, 3, 8, 8), np.uint8), "has no pixels"),
    "an empty image": (np.zeros((3, 0, 8), np.uint8), "has no pixels"),
    "None": (None, "type NoneType cannot be read"),
    "a number": (7, "type int cannot be read"),
    "a list with None": ([None], "image 0 is of type NoneType"),
    "bytes": (b"png", "type bytes cannot be read"),
    "numbers in lists": ([[0, 1], [2, 3]], "int64, whose range is not known"),
    "lists of different lengths": ([[0.5], [0.5, 0.5]], "no array of one shape"),
    "a missing file": ("nowhere.png", "no image file nowhere.png"),
    "a folder": (os.curdir, "it is a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_refused_in_one_line(run, case):
    given, message = REFUSED[case]
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        run.predict(given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_named(run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(RequestError, match=r"cannot decode .*text\.png"):
        run.predict([tmp_path / "text.png"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"device": "tpu"}, "device must be auto, cpu"),
        ({"task": 0}, "does not reveal the task"),
    ],
)
def test_other_arguments_are_checked(run, images, how, message):
    with pytest.raises(RequestError, match=message):
        run.predict(images, **how)


@pytest.mark.parametrize("task", ["two", 0.5, [0, 1], None, [[0]]])
def test_tasks_are_whole_numbers_one_for_each_image(finished, images, tmp_path, task):
    run = finished("linear", tmp_path, {"protocol": "task"}, epochs=1)
    if task is None:
        assert run.predict(images, [0, 1] * 5).shape == (10,)
        return
    with pytest.raises(RequestError, match="task must be a whole number, or one for each of the 10 images"):
        run.predict(images, task)


def test_a_column_of_scores_has_a_class_name(run, images):
    assert run.class_names == ("circle", "square", "star", "cross", "ring", "wave")
    scores = run.scores(images)
    assert (scores.shape, scores.dtype) == ((10, 6), np.float32)
    assert scores.argmax(axis=1).tolist() == run.predict(images).tolist()


# plug-ins of users

MINE = '''
from dataclasses import dataclass
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Mine(Linear):
    """A copy of linear."""
'''


@pytest.fixture
def own_run(finished, tmp_path, monkeypatch):
    """A run of a plug-in that was named by a relative path."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    monkeypatch.chdir(tmp_path)
    return finished("./mine.py:Mine", Path("runs"), backbone="vit_nano", epochs=1)


def test_a_run_of_a_relative_plugin_predicts_from_any_directory(
    own_run, images, tmp_path, monkeypatch, capsys, without_checksums
):
    directory = own_run.directory.absolute()
    wanted = own_run.predict(images).tolist()
    monkeypatch.chdir("/")
    assert clsim.load(directory).predict(images).tolist() == wanted
    # as earlier versions wrote it
    without_checksums(clsim.load(directory))
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace(f"{tmp_path}/mine.py", "mine.py"))
    assert clsim.load(directory).predict(images).tolist() == wanted
    assert "changed" not in capsys.readouterr().err


def test_a_plugin_that_has_changed_is_named_once(own_run, images, tmp_path, capsys):
    with (tmp_path / "mine.py").open("a") as stream:
        stream.write("# another comment\n")
    again = clsim.load(own_run.directory)
    again.predict(images)
    again.scores(images)
    assert capsys.readouterr().err.count("strategy 'mine' changed after") == 1


def test_a_run_of_an_earlier_version_predicts_without_a_word(finished, images, tmp_path, capsys, without_checksums):
    run = finished("linear", tmp_path, epochs=1)
    without_checksums(run)
    about = json.loads((run.directory / "env.json").read_text())
    del about["plugins"], about["image_size"]
    (run.directory / "env.json").write_text(json.dumps(about))
    assert clsim.load(run.directory).predict(images).tolist() == run.predict(images).tolist()
    assert capsys.readouterr().err == ""
