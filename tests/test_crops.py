"""Random crops against torchvision's own, and against TensorFlow's rule written as a plain loop."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from clsim.data.crops import tensorflow_boxes, torchvision_boxes
from clsim.data.transforms import Augmentation, InputSpec, augmented, random_boxes, resample

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
MANY = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sides(boxes):
    """(n,4) -> heights and widths."""
    return boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]


def shares(boxes, height, width):
    tall, wide = sides(boxes)
    return tall * wide / (height * width)


def torchvisions(count, height, width, crop_min):
    """Boxes that torchvision draws."""
    image = torch.zeros(3, height, width)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(image, [crop_min, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    top, left, tall, wide = torch.tensor(drawn).float().unbind(1)
    return torch.stack([top, top + tall, left, left + wide], dim=1)


def tensorflows(height, width, crop_min, draw):
    """A box by the rule of TensorFlow's kernel, one draw after the other."""
    low, most = crop_min * height * width, height * width
    for _ in range(100):
        ratio = 0.75 + draw.random() * (1.33 - 0.75)
        smallest, largest = round(math.sqrt(low / ratio)), round(math.sqrt(most / ratio))
        if round(largest * ratio) > width:
            largest = int((width + 0.5 - 1e-7) / ratio)
            largest -= round(largest * ratio) > width
        largest = min(largest, height)
        tall = largest if smallest >= largest else smallest + draw.integers(largest - smallest + 1)
        tall += tall * round(tall * ratio) < low
        tall -= tall * round(tall * ratio) > most
        wide = round(tall * ratio)
        if low <= tall * wide <= most and 0 < wide <= width and 0 < tall <= height:
            top = draw.integers(height - tall) if tall < height else 0
            left = draw.integers(width - wide) if wide < width else 0
            return top, top + tall, left, left + wide
    return 0, height, 0, width


def close_in_distribution(found, expected):
    """Each column of two samples has nearly the same distribution: Kolmogorov and Smirnov's distance at p = 1e-4."""
    for a, b in zip(found.double().T, expected.double().T, strict=True):
        places = torch.cat([a, b]).sort().values
        distance = (torch.searchsorted(a.sort().values, places, right=True) / len(a)) - (
            torch.searchsorted(b.sort().values, places, right=True) / len(b)
        )
        assert distance.abs().max() < 2.23 * math.sqrt(1 / len(a) + 1 / len(b))


@pytest.mark.parametrize(("height", "width", "crop_min"), [(32, 32, 0.05), (20, 64, 0.3), (64, 20, 0.3), (9, 7, 0.08)])
def test_boxes_are_distributed_as_torchvisions(height, width, crop_min):
    found = torchvision_boxes(MANY, height, width, crop_min, generator())
    assert torch.equal(found, found.round()), "whole pixels"
    close_in_distribution(found, torchvisions(MANY, height, width, crop_min))


@pytest.mark.parametrize(("height", "width", "crop_min"), [(32, 32, 0.05), (20, 64, 0.3), (64, 20, 0.3), (9, 7, 0.08)])
def test_boxes_are_distributed_as_tensorflows(height, width, crop_min):
    found = tensorflow_boxes(MANY, height, width, crop_min, generator())
    draw = np.random.default_rng(0)
    close_in_distribution(found, torch.tensor([tensorflows(height, width, crop_min, draw) for _ in range(MANY)]))


def test_libraries_keep_less_of_an_image():
    # areas from 0.05 to 1: torchvision draws large boxes again more often, since they fit less; in TensorFlow it is the
    # height that is uniform, and not the area
    kept = {"smooth": 0.525, "torchvision": 0.474, "tensorflow": 0.378}
    for name, mean in kept.items():
        boxes = random_boxes(20000, 32, 32, Augmentation(0.05, flip=False, transforms=name), generator())
        assert shares(boxes, 32, 32).mean() == pytest.approx(mean, abs=0.006)
    assert shares(torchvisions(MANY, 32, 32, 0.05), 32, 32).mean() == pytest.approx(kept["torchvision"], abs=0.012)


def test_where_no_box_fits_it_is_torchvisions_central_one():
    # the whole area of an image of ratio 3: no ratio from 3/4 to 4/3 fits, so 20 x round(20 * 4/3) from the middle
    boxes = torchvision_boxes(50, 20, 60, 1.0, generator())
    assert boxes.tolist() == [[0, 20, 16, 43]] * 50
    assert torchvision_boxes(5, 60, 20, 1.0, generator()).tolist() == [[16, 43, 0, 20]] * 5
    assert tensorflow_boxes(5, 20, 60, 1.0, generator()).tolist() == [[0, 20, 0, 60]] * 5, "the whole image"


def test_tensorflow_never_reaches_the_lower_and_right_edges_with_a_part():
    top, bottom, left, right = tensorflow_boxes(MANY, 32, 32, 0.05, generator()).unbind(1)
    assert (bottom[top > 0] < 32).all() and (right[left > 0] < 32).all()
    assert (bottom[bottom - top < 32] < 32).all() and (top == 0).any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("top", "left", "tall", "wide", "size"), [(3, 7, 20, 15, 48), (0, 0, 32, 32, 24), (5, 1, 9, 31, 32)]
)
def test_a_crop_is_torchvisions_on_pillow_images(top, left, tall, wide, size, interpolation):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mode = reference.InterpolationMode(interpolation)
    expected = reference.resized_crop(Image.fromarray(image), top, left, tall, wide, [size, size], mode)
    box = torch.tensor([[top, top + tall, left, left + wide]], dtype=torch.float32)
    pixels = InputSpec(size, interpolation=interpolation, eight_bit=True, **RAW)
    found = resample(torch.from_numpy(image).permute(2, 0, 1)[None], box, pixels, inside=True)[0] * 255
    assert torch.equal(found.round(), torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1).float())
    assert torch.allclose(found, found.round(), atol=1e-4), "whole numbers of 255ths"


def test_crops_have_their_own_interpolation_and_end_at_their_edges():
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :, 16:] = 255
    how = Augmentation(0.05, flip=False, transforms="torchvision", interpolation="bicubic")
    pixels = InputSpec(64, **RAW)
    found = augmented(images, pixels, how, generator())
    boxes = random_boxes(200, 32, 32, how, generator())
    cubic = InputSpec(64, interpolation="bicubic", **RAW)
    assert torch.equal(found, resample(images, boxes, cubic, inside=True))
    black = boxes[:, 3] == 16  # a crop that ends at the edge between black and white sees no white
    assert black.any() and (found[black] == 0).all()
    assert (resample(images, boxes, pixels)[black] > 0).any(), "clsim's own boxes see the pixels next to them"


def test_half_of_the_boxes_are_mirrored():
    for name in ("torchvision", "tensorflow"):
        boxes = random_boxes(2000, 32, 32, Augmentation(0.3, flip=True, transforms=name), generator())
        assert 900 < (boxes[:, 2] > boxes[:, 3]).sum() < 1100
        plain = random_boxes(2000, 32, 32, Augmentation(0.3, flip=False, transforms=name), generator())
        assert torch.equal(boxes[:, 2:].sort(dim=1).values, plain[:, 2:])
