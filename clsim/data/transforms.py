"""Crop, flip, resize and normalise whole batches of uint8 images with two batched matrix products.

Cropping, mirroring and antialiased resizing, bilinear or bicubic, are linear and separable: each output row is a
weighted sum of input rows, and each output column a weighted sum of input columns. One matrix per image and axis does
all of them, on any device. Images of several sizes are computed one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """The images that a tower expects. Mean and standard deviation are for values in [0, 1]."""

    size: int  # side of the square input, in pixels
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop: float = 224 / 256  # share of the shorter side that evaluation sees, from the centre
    interpolation: Interpolation = "bilinear"  # bicubic is not clipped: near edges values may leave the image's range

    def __repr__(self) -> str:
        # Fingerprints of towers contain this text, with the class's old name. Fields that were added later are left out
        # if they have their default: so users' caches stay valid.
        shown = [f.name for f in fields(self) if f.name != "interpolation" or self.interpolation != f.default]
        return f"Pixels({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def stored_side(self) -> int:
        """Shorter side at which larger images are stored, so that the central crop needs no second resize."""
        return round(self.size / self.crop)


Pixels = InputSpec  # the old name


@dataclass(frozen=True)
class Augmentation:
    """Random resized crops (Szegedy et al. 2015) and horizontal flips."""

    crop_min: float = 0.6  # smallest share of the area that a crop keeps; 1 keeps the whole image
    flip: bool = True  # mirror half of the images; must be off for digits and letters


def axis_weights(
    start: Tensor, stop: Tensor, length: int, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Filter weights (B, size, length) that resample [start, stop) of an axis to `size` points.

    `start` and `stop` are (B,) in pixels; start > stop mirrors. The filter is a triangle or Keys's cubic. When the axis
    shrinks, it becomes wider, as in torchvision's antialiased resize. It is cut at the ends of the axis.
    """
    step = (stop - start) / size
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step[:, None]
    pixel = torch.arange(length, device=start.device) + 0.5
    width = step.abs().clamp(min=1.0)[:, None, None]
    distance = (pixel - centre[..., None]).abs() / width
    weights = keys_cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys's cubic filter at distances of at least 0 from its centre, of the same shape (Keys 1981, eq. 4, a = -0.5).

    PIL and torchvision's antialiased resize have this a, too; torch's resize without antialias has -0.75.
    """
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resample(images: Tensor, boxes: Tensor, pixels: InputSpec) -> Tensor:
    """(B,3,H,W) uint8 images, (B,4) boxes -> (B,3,S,S) float32, normalised.

    A box is (top, bottom, left, right) in pixels; left > right mirrors the image.
    """
    height, width = images.shape[-2:]
    rows = axis_weights(boxes[:, 0], boxes[:, 1], height, pixels.size, pixels.interpolation)
    columns = axis_weights(boxes[:, 2], boxes[:, 3], width, pixels.size, pixels.interpolation)
    out = rows[:, None] @ (images.float() @ columns[:, None].transpose(-1, -2))
    return normalise(out, pixels)


def normalise(images: Tensor, pixels: InputSpec) -> Tensor:
    """(B,3,H,W) float values in [0, 255] -> the same, shifted and scaled in place to the tower's range."""
    mean = torch.tensor(pixels.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(pixels.std, device=images.device).view(3, 1, 1)
    return images.mul_(1 / (255 * std)).sub_(mean / std)


def evaluation(images: Tensor, pixels: InputSpec) -> Tensor:
    """(B,3,H,W) uint8 -> (B,3,S,S): the central crop, resized; the same crop for every image."""
    height, width = images.shape[-2:]
    side = pixels.crop * min(height, width)
    if side == height == width == pixels.size:
        return normalise(images.float(), pixels)
    top, left = (height - side) / 2, (width - side) / 2
    box = torch.tensor([[top, top + side, left, left + side]], device=images.device)
    return resample(images, box.expand(len(images), 4), pixels)


def random_boxes(count: int, height: int, width: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(count, 4) random boxes: area uniform in [crop_min, 1], aspect ratio log-uniform in [3/4, 4/3].

    If a box does not fit into the image, it takes the nearest ratio at which its area fits.
    """
    draw = torch.rand(count, 5, generator=generator)
    share = how.crop_min + (1 - how.crop_min) * draw[:, 0]
    ratio = torch.exp((2 * draw[:, 1] - 1) * math.log(4 / 3))
    ratio = torch.minimum(torch.maximum(ratio, share * width / height), width / (share * height))
    area = share * height * width
    crop_height = torch.sqrt(area / ratio).clamp(max=height)
    crop_width = torch.sqrt(area * ratio).clamp(max=width)
    top = draw[:, 2] * (height - crop_height)
    left = draw[:, 3] * (width - crop_width)
    right = left + crop_width
    if how.flip:
        mirrored = draw[:, 4] < 0.5
        left, right = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
    return torch.stack([top, top + crop_height, left, right], dim=1)


def augmented(
    images: Tensor | Sequence[Tensor], pixels: InputSpec, how: Augmentation, generator: torch.Generator
) -> Tensor:
    """(B,3,H,W) uint8, or B images (3,h,w) -> (B,3,S,S): a random crop of each image, mirrored at random."""
    if not isinstance(images, Tensor):
        # one by one, not padded to one size: padding costs more, and an image's bits would depend on the others' sizes
        return torch.cat([augmented(image[None], pixels, how, generator) for image in images])
    height, width = images.shape[-2:]
    boxes = random_boxes(len(images), height, width, how, generator)
    return resample(images, boxes.to(images.device), pixels)
