"""Whole images: what is stored of images of any shape, what training and evaluation see of them, and their runs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as reference

from clsim import rng
from clsim.backbones.features import BLOCK, FeatureBank, View
from clsim.backbones.vit import VisionTower, nano_vit
from clsim.data import table as table_module
from clsim.data.batches import Loader, as_tensors
from clsim.data.pixels import LONGEST, centre_square, decoded, whole_image, whole_size
from clsim.data.readers import Source
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation

CPU = torch.device("cpu")
PIXELS = InputSpec(56, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # stored at 64
SHAPES = [(375, 500), (500, 375), (64, 64), (80, 100), (32, 100), (90, 91), (25, 60), (200, 10)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def table_of(tmp_path, encode):
    """A table of pictures; picture i is in row i, because it is the only one of class i."""

    def make(pictures, side=64, fingerprint="print"):
        files, classes = [encode(picture) for picture in pictures], tuple(map(str, range(len(pictures))))
        source = Source(files.__getitem__, classes, np.arange(len(files)), classes, fingerprint)
        return ImageTable.decode(source, side, tmp_path)

    return make


def loader(table):
    return Loader(table, PIXELS, {"images"}, CPU)


# what is stored


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((375, 500), 256, (256, 340)),  # 341.3: two pixels more than an even number would not be whole
        ((500, 375), 256, (340, 256)),
        ((375, 500), 32, (32, 42)),
        ((256, 256), 32, (32, 32)),
        ((32, 100), 32, (32, 100)),
        ((20, 30), 64, (64, 96)),  # enlarged
        ((100, 101), 64, (64, 64)),
        ((10, 40), 32, (32, 128)),
        ((10, 41), 32, (32, 128)),  # the bound
        ((10, 200), 32, (32, 128)),
        ((200, 10), 33, (131, 33)),
        ((1, 3000), 64, (64, 256)),
    ],
)
def test_the_shorter_side_is_the_stored_side(encode, size, side, expected):
    assert whole_size(*size, side) == expected
    assert whole_image(encode(noise(*size)), side).shape == (3, *expected)
    assert max(expected) <= LONGEST * side


@pytest.mark.parametrize("side", [64, 57, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_square_in_the_centre_has_the_bits_of_a_centre_crop(encode, shape, side):
    picture = noise(*shape)
    found = centre_square(whole_image(encode(picture), side))
    enlarged = side > min(shape)
    how = Image.Resampling.BILINEAR if enlarged else Image.Resampling.BICUBIC
    expected = np.asarray(ImageOps.fit(Image.fromarray(picture), (side, side), how)).transpose(2, 0, 1)
    assert (found == expected).all() and (decoded(encode(picture), side, side) == expected).all()


@pytest.mark.parametrize("shape", [(90, 150), (150, 90)])
def test_what_is_beside_the_square_fits_to_it(encode, shape):
    picture = noise(*shape)
    found = whole_image(encode(picture), 30)
    expected = Image.fromarray(picture).resize((shape[1] // 3, shape[0] // 3), Image.Resampling.BICUBIC)
    assert found.shape == (3, shape[0] // 3, shape[1] // 3)
    assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 2  # steps of a rounded filter


def test_of_a_very_long_image_the_middle_is_stored(encode, table_of):
    ramp = np.tile(np.arange(0, 200, dtype=np.uint8)[None, :, None], (10, 1, 3))  # 20:1
    found = whole_image(encode(ramp), 20)
    assert found.shape == (3, 20, 80)
    assert found[0, 10, 0] in (80, 81) and found[0, 10, -1] in (119, 120), "40 of 200 columns"
    table = table_of([ramp, ramp.transpose(1, 0, 2)], side=20)
    assert table.bytes_of(np.arange(2)) == 2 * 3 * 20 * 80
    assert table.pixels(np.arange(2)).shape == (2, 3, 20, 20)


# what training sees


def coordinates(height, width):
    """A picture that is red from left to right, green from top to bottom, and blue in its left and right thirds."""
    picture = np.zeros((height, width, 3))
    picture[..., 0] = (np.arange(width) + 0.5)[None] / width * 255
    picture[..., 1] = (np.arange(height) + 0.5)[:, None] / height * 255
    picture[:, : width // 3, 2] = 200
    picture[:, -(width // 3) :, 2] = 100
    return np.rint(picture).astype(np.uint8)


def crops(table, how, draws):
    """(draws,3,S,S) crops of the first image, with values in [0, 1]."""
    return loader(table).train(np.zeros(draws, dtype=np.int64), how, torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
@pytest.mark.parametrize("shape", [(375, 500), (500, 375)])
def test_crops_of_a_photograph_see_all_of_it(table_of, monkeypatch, limit, shape):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    table = table_of([coordinates(*shape)])
    found = crops(table, Augmentation(crop_min=0.1), 200) * 255
    red, green, blue = found.unbind(1)
    for values in (red, green):
        assert values.min() < 4 and values.max() > 251
    assert {100, 200} <= set(blue.round().int().unique().tolist()), "the left and the right third"
    at_left, at_right = (red.amin(dim=(1, 2)) < 32).float().mean(), (red.amax(dim=(1, 2)) > 223).float().mean()
    assert abs(at_left - at_right) < 0.15 and at_left > 0.2
    clean = evaluation(torch.from_numpy(table.pixels(np.array([0]))), PIXELS) * 255
    longer = clean[0, 0] if shape[1] > shape[0] else clean[0, 1]
    assert longer.min() > 36 and longer.max() < 219, "evaluation sees 0.875 of 0.75"


@pytest.mark.parametrize("crop_min", [0.08, 0.5, 1.0])
def test_crops_keep_the_share_of_the_whole_image_that_torchvision_asks_for(table_of, crop_min):
    # RandomResizedCrop draws the share of the area uniformly from its scale: on average (crop_min + 1) / 2
    table = table_of([coordinates(300, 400)])  # stored 64 x 84 of 85.3
    found = crops(table, Augmentation(crop_min=crop_min, flip=False), 1000)
    slope = (found[:, 0, 28, 38] - found[:, 0, 28, 18]) * 56 / 20  # share of the width that a crop keeps
    share = slope * (found[:, 1, 38, 28] - found[:, 1, 18, 28]) * 56 / 20
    assert share.mean().item() == pytest.approx((crop_min + 1) / 2 * 84 / (64 * 4 / 3), abs=0.025)


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
def test_an_image_has_the_same_bits_alone_and_beside_others(table_of, monkeypatch, limit):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    table = table_of([noise(*shape, seed) for seed, shape in enumerate(SHAPES)])
    how, rows = Augmentation(crop_min=0.1), np.arange(len(SHAPES))

    def batch(rows):
        return loader(table).train(rows, how, torch.Generator().manual_seed(1)).images

    for row in rows.tolist():
        alone = batch(np.array([row]))
        beside = batch(np.roll(rows, -row))
        assert torch.equal(alone[0], beside[0])
        assert torch.equal(beside, batch(np.roll(rows, -row)))
    assert batch(rows[:0]).shape == (0, 3, 56, 56)


# what evaluation sees


@pytest.mark.parametrize("limit", [100, 1 << 30])  # encoded and decoded
def test_evaluation_sees_the_bits_that_it_saw_of_centre_squares(table_of, monkeypatch, limit):
    monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
    pictures = [noise(*shape, seed) for seed, shape in enumerate([(375, 500), (500, 375), (64, 64), (70, 300)])]
    table = table_of(pictures)
    assert table.images.shape == (4, 3, 64, 64)
    squares = [ImageOps.fit(Image.fromarray(each), (64, 64), Image.Resampling.BICUBIC) for each in pictures]
    expected = evaluation(torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy()), PIXELS)
    ((_, batch),) = loader(table).unlabelled(np.arange(4), 4)
    assert torch.equal(batch.images, expected)
    (clean,) = loader(table).clean(np.arange(4), 4)
    assert torch.equal(clean.images, expected)


@pytest.mark.parametrize("shape", [(192, 288), (288, 192), (128, 256)])  # torchvision's sizes are whole numbers here
def test_evaluation_is_torchvisions_resize_and_centre_crop(table_of, shape):
    picture = noise(*shape)
    resized = reference.resize(Image.fromarray(picture), [64], reference.InterpolationMode.BICUBIC)
    expected = np.asarray(reference.center_crop(resized, [64, 64])).transpose(2, 0, 1)
    found = table_of([picture]).pixels(np.array([0]))[0]
    assert np.abs(found.astype(int) - expected).max() <= 2  # steps of a rounded filter
    one = InputSpec(64, PIXELS.mean, PIXELS.std, crop=1.0)
    seen = evaluation(torch.from_numpy(found[None]), one)[0]
    torch.testing.assert_close(seen, torch.from_numpy(expected.copy()) / 255, rtol=0, atol=2 / 255 + 1e-6)


# features, joined sources, and runs


def test_banks_have_centre_squares_and_views_have_crops_of_the_whole(table_of, tmp_path):
    tower = VisionTower(nano_vit(), InputSpec(16, crop=1.0)).eval().requires_grad_(False)
    table = table_of([noise(*SHAPES[i % len(SHAPES)], i) for i in range(5)], side=16)
    rows, padded = np.arange(5), np.arange(BLOCK).clip(max=4)
    how = Augmentation(0.3)
    for view in (None, View(1, how)):
        images = evaluation(torch.from_numpy(table.pixels(padded)), tower.pixels)
        if view is not None:
            whole = as_tensors(table.whole(padded), CPU)
            assert max(max(image.shape) for image in whole) > 16
            images = augmented(whole, tower.pixels, how, rng.generator(1, "view", 0))
        with torch.no_grad():
            expected = tower(images)[:5].float()
        assert torch.equal(FeatureBank(tower, table, CPU, tmp_path, view).rows(rows), expected)


def test_a_table_that_is_joined_with_others_gives_its_whole_images(table_of):
    table = table_of([noise(40, 60), noise(40, 80)], side=32)
    source = table.encoded()
    for row, expected in enumerate(table.whole(np.arange(2))):
        found = np.asarray(Image.open(io.BytesIO(source.read(row)))).transpose(2, 0, 1)
        assert (found == expected).all()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, encode):
    """A tree of four classes with pictures of several shapes."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 6), ("test", 3)):
        for label in range(4):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                picture = noise(*[(30, 40), (40, 30), (24, 24), (20, 200)][(i + label) % 4], 100 * label + i)
                picture[..., label % 3] //= 2 + label
                (folder / f"{i} of {split}.png").write_bytes(encode(picture))
    return root


FIELDS = {"on": "folder", "scenario": {"classes_per_experience": 2}}


def test_runs_on_photographs_resume_bit_identical_and_predict_as_evaluated(
    photographs, tmp_path, finished, prepare, broken_off, same_run, evaluated
):
    def run(name):
        return finished("er", tmp_path / name, data_dir=photographs, checkpoint_minutes=0, memory=8, **FIELDS)

    whole = run("whole")
    for saves in (2, 8):
        assert broken_off(saves, lambda: run("broken"))["inside"]
    same_run(run("broken"), whole)
    for test in prepare("er", tmp_path, data_dir=photographs, **FIELDS).benchmark.test_stream:
        last = [evaluated[whole.directory][test.table.fingerprint, row] for row in test.rows.tolist()]
        squares = test.table.pixels(test.rows)
        assert whole.predict(squares).tolist() == last
        files = {}
        for file in sorted((photographs / "test").rglob("*.png")):
            files[decoded(file.read_bytes(), *squares.shape[2:]).tobytes()] = file
        assert whole.predict([files[square.tobytes()] for square in squares]).tolist() == last
        assert whole.predict([np.asarray(Image.open(files[square.tobytes()])) for square in squares]).tolist() == last


def test_a_memory_counts_the_bytes_of_whole_images(photographs, tmp_path, prepare, finished):
    run = finished("er", tmp_path, data_dir=photographs, memory=100, epochs=1, **FIELDS)
    table = prepare("er", tmp_path, data_dir=photographs, **FIELDS).benchmark.train_table
    every = sum(image.nbytes for image in table.whole(np.arange(len(table))))
    assert run.summary["cost"]["memory_bytes"] == every > len(table) * 3 * 16 * 16


def test_a_run_on_encoded_photographs_is_the_same_run(photographs, tmp_path, finished, same_run, monkeypatch):
    runs = []
    for form, limit in (("decoded", 1 << 30), ("encoded", 100)):
        monkeypatch.setattr(table_module, "LARGEST_DECODED", limit)
        monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / form))
        runs.append(finished("finetune", tmp_path / f"runs {form}", data_dir=photographs, **FIELDS))
    assert list((tmp_path / "encoded").rglob("images.bin")) and not list((tmp_path / "decoded").rglob("images.bin"))
    same_run(*runs)
