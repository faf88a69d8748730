"""Batch transforms against torchvision's antialiased resize, and the promises made about augmentation."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from clsim.data.transforms import (
    Augmentation,
    InputSpec,
    augmented,
    axis_weights,
    evaluation,
    keys_cubic,
    random_boxes,
    resample,
)

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # leaves pixels in [0, 1]


def random_images(count, height, width=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width or height), dtype=torch.uint8, generator=generator)


def box(*edges):
    return torch.tensor([edges], dtype=torch.float32)


def test_axis_weights_by_hand():
    # 4 pixels to 2: output 0 is centred at 1.0, the filter is 2 wide to each side, so pixels at 0.5, 1.5, 2.5 and 3.5
    # weigh 3/4, 3/4, 1/4 and 0 before they are made to sum to one
    weights = axis_weights(torch.tensor([0.0]), torch.tensor([4.0]), 4, 2)
    expected = torch.tensor([[[3, 3, 1, 0], [0, 1, 3, 3]]]) / 7
    torch.testing.assert_close(weights, expected)


def test_axis_weights_of_the_same_size_copy():
    weights = axis_weights(torch.tensor([0.0]), torch.tensor([5.0]), 5, 5)
    torch.testing.assert_close(weights[0], torch.eye(5))


def test_the_cubic_filter_by_hand():
    # Keys's cubic with a = -0.5: 1.5 x^3 - 2.5 x^2 + 1 up to 1, then -0.5 x^3 + 2.5 x^2 - 4 x + 2 up to 2
    found = keys_cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5625, 0.0, -0.0625, 0.0, 0.0]))


def test_bicubic_axis_weights_by_hand():
    # 2 pixels to 4: output 0 is centred at 0.25, the pixels at 0.5 and 1.5 are 0.25 and 1.25 away; the filter there is
    # 111/128 and -9/128, the sum 102/128; outputs 2 and 3 mirror 1 and 0. Output 1 is at 0.75: 0.25 and 0.75 away,
    # the filter 111/128 and 29/128, the sum 140/128
    weights = axis_weights(torch.tensor([0.0]), torch.tensor([2.0]), 2, 4, "bicubic")
    first, second = [111 / 102, -9 / 102], [111 / 140, 29 / 140]
    torch.testing.assert_close(weights, torch.tensor([[first, second, second[::-1], first[::-1]]]))


# sizes at which torchvision's resized image has whole numbers of pixels on both sides, and a whole margin
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size", "shorter"),
    [(32, 32, 224, 256), (32, 32, 224, 224), (512, 512, 224, 256), (64, 96, 28, 32), (48, 48, 32, 32), (8, 8, 32, 32)],
)
def test_evaluation_is_torchvisions_resize_and_centre_crop(height, width, size, shorter, interpolation):
    images = random_images(2, height, width)
    mode = reference.InterpolationMode(interpolation)
    expected = reference.resize(images.float() / 255, [shorter], mode, antialias=True)
    expected = reference.center_crop(expected, [size, size])
    found = evaluation(images, InputSpec(size, crop=size / shorter, interpolation=interpolation, **RAW))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def pils_bicubic(image, size):
    """(H,W,3) uint8 -> (3,size,size) float32 in [0, 1], resized by PIL, which does not round its 32-bit mode."""
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)) for channel in channels]
    return torch.from_numpy(np.stack(resized)) / 255


@pytest.mark.parametrize(("side", "size"), [(32, 224), (224, 32), (33, 32)])
def test_bicubic_is_pils(side, size):
    images = random_images(1, side)
    found = evaluation(images, InputSpec(size, crop=1.0, interpolation="bicubic", **RAW))
    expected = pils_bicubic(images[0].permute(1, 2, 0).numpy(), size)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "shorter", "size"), [(32, 256, 224), (96, 64, 56), (48, 32, 32)])
def test_eight_bit_evaluation_is_torchvisions_of_pillow_images(side, shorter, size, interpolation):
    image = random_images(1, side)
    mode = reference.InterpolationMode(interpolation)
    resized = reference.resize(Image.fromarray(image[0].permute(1, 2, 0).numpy()), [shorter], mode)
    expected = np.asarray(reference.center_crop(resized, [size, size])).copy()
    found = evaluation(image, InputSpec(size, (0.0,) * 3, (1.0,) * 3, size / shorter, interpolation, eight_bit=True))
    assert torch.equal((255 * found[0]).round().to(torch.uint8), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.data
def test_photographs_are_resized_as_pil_does(data_dir):
    file = min((data_dir / "pacs").glob("train*.parquet"))
    cell = next(pq.ParquetFile(file).iter_batches(1, columns=["image"]))["image"][0].as_py()
    photograph = np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
    side = min(photograph.shape[:2])
    photograph = photograph[:side, :side].copy()
    images = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    for size in (96, 288):
        found = evaluation(images, InputSpec(size, crop=1.0, interpolation="bicubic", **RAW))[0]
        torch.testing.assert_close(found, pils_bicubic(photograph, size), rtol=0, atol=1e-4)


def test_bicubic_differs_from_bilinear_but_for_images_of_the_towers_size():
    images = random_images(2, 32)
    smooth, sharp = (InputSpec(32, crop=1.0, interpolation=name, **RAW) for name in ("bilinear", "bicubic"))
    assert torch.equal(evaluation(images, smooth), evaluation(images, sharp))
    half = box(8, 24, 8, 24).expand(2, 4)
    assert not torch.allclose(resample(images, half, smooth), resample(images, half, sharp), atol=0.01)


def test_augmentation_is_bicubic_where_the_pixels_are():
    images, how = random_images(4, 32), Augmentation(crop_min=1.0, flip=False)
    pixels = InputSpec(64, crop=1.0, interpolation="bicubic", **RAW)
    found = augmented(images, pixels, how, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, evaluation(images, pixels), rtol=0, atol=1e-4)


def test_the_text_of_pixels_names_the_interpolation_only_where_it_is_not_bilinear():
    # fingerprints of towers and of features are made from this text
    plain = "Pixels(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=1.0"
    assert repr(InputSpec(32, crop=1.0)) == repr(InputSpec(32, crop=1.0, interpolation="bilinear")) == f"{plain})"
    assert repr(InputSpec(32, crop=1.0, interpolation="bicubic")) == f"{plain}, interpolation='bicubic')"
    assert repr(InputSpec(32, crop=1.0, eight_bit=True)) == f"{plain}, eight_bit=True)"


def test_the_text_of_an_augmentation_is_that_of_banks_made_before_unless_a_later_field_is_set():
    assert str(Augmentation(0.5)) == "crops from 0.5, mirrored" and str(Augmentation(0.5, False)) == "crops from 0.5"
    later = Augmentation(0.5, transforms="torchvision", interpolation="bicubic")
    assert str(later) == "crops from 0.5, mirrored, torchvision, bicubic"


def test_normalisation_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    found = evaluation(images, InputSpec(4, mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 0.4), crop=1.0))
    # (x / 255 - mean) / std for x / 255 of 0, 0.2 and 1
    expected = torch.tensor([[-1.0, 0.0, -0.5], [-0.6, 0.2, 0.0], [1.0, 1.0, 2.0]])
    torch.testing.assert_close(found[:, :, 2, 1], expected)


def test_images_of_the_towers_size_are_only_normalised():
    images = random_images(2, 32)
    pixels = InputSpec(32, crop=1.0, **RAW)
    expected = resample(images, box(0, 32, 0, 32).expand(2, 4), pixels)
    torch.testing.assert_close(evaluation(images, pixels), expected, rtol=0, atol=1e-6)


def test_a_box_is_torchvisions_crop_and_resize():
    images = random_images(1, 40)
    found = resample(images, box(8, 40, 0, 32), InputSpec(64, **RAW))
    # inside the box only: at its edges we see the pixels beyond, which a crop has cut off
    expected = reference.resize(images[..., 8:40, 0:32].float() / 255, [64, 64], antialias=True)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=1e-5)


def test_a_mirrored_box_is_a_flip():
    images = random_images(3, 32)
    pixels = InputSpec(48)
    plain = resample(images, box(0, 32, 0, 32).expand(3, 4), pixels)
    mirrored = resample(images, box(0, 32, 32, 0).expand(3, 4), pixels)
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize("crop_min", [0.1, 0.6, 0.95])
def test_boxes_stay_inside_and_keep_their_share(height, width, crop_min):
    how = Augmentation(crop_min=crop_min, flip=False)
    top, bottom, left, right = random_boxes(2000, height, width, how, torch.Generator().manual_seed(0)).unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= height + 1e-4).all() and (right <= width + 1e-4).all()
    share = (bottom - top) * (right - left) / (height * width)
    assert share.min() >= crop_min - 1e-4
    assert share.max() <= 1 + 1e-4
    assert share.std() > 0.2 * (1 - crop_min)  # uniform would be 0.29


def test_ratios_stay_between_three_quarters_and_four_thirds():
    boxes = random_boxes(2000, 32, 32, Augmentation(crop_min=0.3, flip=False), torch.Generator().manual_seed(0))
    ratio = (boxes[:, 3] - boxes[:, 2]) / (boxes[:, 1] - boxes[:, 0])
    assert 0.75 - 1e-3 <= ratio.min() < 0.8
    assert 1.25 < ratio.max() <= 4 / 3 + 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_no_crop_keeps_the_whole_image(height, width):
    boxes = random_boxes(8, height, width, Augmentation(crop_min=1.0, flip=False), torch.Generator().manual_seed(0))
    torch.testing.assert_close(boxes, box(0, height, 0, width).expand(8, 4), rtol=0, atol=1e-4)


def test_half_are_mirrored_and_none_without_flip():
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(2000, 32, 32, Augmentation(flip=True), generator)
    assert 900 < (boxes[:, 2] > boxes[:, 3]).sum() < 1100
    boxes = random_boxes(2000, 32, 32, Augmentation(flip=False), generator)
    assert (boxes[:, 2] < boxes[:, 3]).all()


def test_augmentation_comes_from_its_generator_alone():
    images, pixels, how = random_images(6, 32), InputSpec(32), Augmentation()
    first = augmented(images, pixels, how, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    again = augmented(images, pixels, how, torch.Generator().manual_seed(3))
    other = augmented(images, pixels, how, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_an_image_is_augmented_by_its_own_draw():
    images, pixels, how = random_images(6, 32), InputSpec(48), Augmentation()
    others = random_images(6, 32, seed=1)
    others[2] = images[2]
    found = [augmented(batch, pixels, how, torch.Generator().manual_seed(3)) for batch in (images, others)]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=1e-6)
    assert not torch.allclose(found[0][3], found[1][3])


def test_stored_side_leaves_room_for_the_central_crop():
    assert InputSpec(224).stored_side == 256
    assert InputSpec(32, crop=1.0).stored_side == 32
