"""Crop, flip, resize and normalise whole batches of uint8 images with two batched matrix products.

Cropping, mirroring and antialiased resizing, bilinear or bicubic, are linear and separable: each output row is a
weighted sum of input rows, and each output column a weighted sum of input columns. One matrix per image and axis does
all of them, on any device. Images of several sizes are computed one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from clsim.data.ahead import sent
from clsim.data.crops import tensorflow_boxes, torchvision_boxes
from clsim.parallel import Share

Interpolation = Literal["bilinear", "bicubic"]
Transforms = Literal["smooth", "torchvision", "tensorflow"]
SAMPLERS = {"torchvision": torchvision_boxes, "tensorflow": tensorflow_boxes}


@dataclass(frozen=True)
class InputSpec:
    """The images that a tower expects. Mean and standard deviation are for values in [0, 1]."""

    size: int  # side of the square input, in pixels
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop: float = 224 / 256  # share of the shorter side that evaluation sees, from the centre
    interpolation: Interpolation = "bilinear"  # bicubic is not clipped: near edges values may leave the image's range
    eight_bit: bool = False  # after each axis, round resampled values and clip them to 0..255, as Pillow does

    def __repr__(self) -> str:
        # Fingerprints of towers contain this text, with the class's old name. Fields that were added later are left out
        # if they have their default: so users' caches stay valid.
        later = ("interpolation", "eight_bit")
        shown = [f.name for f in fields(self) if f.name not in later or getattr(self, f.name) != f.default]
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
    transforms: Transforms = "smooth"  # how boxes are drawn: anywhere, or as by a library (clsim/data/crops.py)
    interpolation: Interpolation | None = None  # of crops; None: the same as in evaluation

    def __str__(self) -> str:
        """For the keys of feature banks; fields that were added later are left out if they have their default."""
        text = f"crops from {self.crop_min}{', mirrored' * self.flip}"
        text += f", {self.transforms}" * (self.transforms != "smooth")
        return text if self.interpolation is None else f"{text}, {self.interpolation}"


def axis_weights(
    start: Tensor,
    stop: Tensor,
    length: int,
    size: int,
    interpolation: Interpolation = "bilinear",
    inside: bool = False,
) -> Tensor:
    """Filter weights (B, size, length) that resample [start, stop) of an axis to `size` points.

    `start` and `stop` are (B,) in pixels; start > stop mirrors. The filter is a triangle or Keys's cubic. When the axis
    shrinks, it becomes wider, as in torchvision's antialiased resize. It is cut at the ends of the axis; with `inside`
    at `start` and `stop`, as if the crop were an image of its own.
    """
    step = (stop - start) / size
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step[:, None]
    pixel = torch.arange(length, device=start.device) + 0.5
    width = step.abs().clamp(min=1.0)[:, None, None]
    distance = (pixel - centre[..., None]).abs() / width
    weights = keys_cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    if inside:
        low, high = torch.minimum(start, stop)[:, None, None], torch.maximum(start, stop)[:, None, None]
        weights = weights * ((pixel > low) & (pixel < high))
    return weights / weights.sum(-1, keepdim=True)


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys's cubic filter at distances of at least 0 from its centre, of the same shape (Keys 1981, eq. 4, a = -0.5).

    PIL and torchvision's antialiased resize have this a, too; torch's resize without antialias has -0.75.
    """
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resample(images: Tensor, boxes: Tensor, pixels: InputSpec, inside: bool = False) -> Tensor:
    """(B,3,H,W) uint8 images, (B,4) boxes -> (B,3,S,S) float32, normalised.

    A box is (top, bottom, left, right) in pixels; left > right mirrors the image. `inside`: pixels outside of the box
    have no influence.
    """
    height, width = images.shape[-2:]
    if pixels.eight_bit and boxes.device.type != "mps":  # Apple's GPUs have no float64: there the last bit may differ
        boxes = boxes.double()
    rows = axis_weights(boxes[:, 0], boxes[:, 1], height, pixels.size, pixels.interpolation, inside)
    columns = axis_weights(boxes[:, 2], boxes[:, 3], width, pixels.size, pixels.interpolation, inside)
    if pixels.eight_bit:
        rows, columns = fixed_point(rows), fixed_point(columns)
        half = eight_bits(images.to(boxes.dtype) @ columns[:, None].transpose(-1, -2))
        return normalise(eight_bits(rows[:, None] @ half).float(), pixels)
    return normalise(rows[:, None] @ (images.float() @ columns[:, None].transpose(-1, -2)), pixels)


def fixed_point(weights: Tensor) -> Tensor:
    """Weights rounded to whole multiples of 2^-22, halves away from zero, as in Pillow."""
    return weights.sign() * (weights.abs() * 2**22 + 0.5).floor() / 2**22


def eight_bits(values: Tensor) -> Tensor:
    """Values rounded (halves upwards) and clipped to 0..255, in place, as Pillow does after each axis."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def normalise(images: Tensor, pixels: InputSpec) -> Tensor:
    """(B,3,H,W) float values in [0, 255] -> the same, shifted and scaled in place to the tower's range."""
    mean, std = torch.tensor(pixels.mean), torch.tensor(pixels.std)
    factors = sent(torch.stack([1 / (255 * std), mean / std]), images.device)  # at once, and nobody waits
    return images.mul_(factors[0].view(3, 1, 1)).sub_(factors[1].view(3, 1, 1))


def evaluation(images: Tensor, pixels: InputSpec) -> Tensor:
    """(B,3,H,W) uint8 -> (B,3,S,S): the central crop, resized; the same crop for every image."""
    height, width = images.shape[-2:]
    side = pixels.crop * min(height, width)
    if side == height == width == pixels.size:
        return normalise(images.float(), pixels)
    top, left = (height - side) / 2, (width - side) / 2
    box = sent(torch.tensor([[top, top + side, left, left + side]]), images.device)
    return resample(images, box.expand(len(images), 4), pixels)


def random_boxes(count: int, height: int, width: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(count, 4) random boxes: area uniform in [crop_min, 1], aspect ratio log-uniform in [3/4, 4/3].

    If a box does not fit into the image, it takes the nearest ratio at which its area fits. With other `transforms`
    than "smooth", the boxes have the distribution of that library's (clsim/data/crops.py).
    """
    if how.transforms != "smooth":
        boxes = SAMPLERS[how.transforms](count, height, width, how.crop_min, generator)
        return mirrored(boxes, torch.rand(count, generator=generator)) if how.flip else boxes
    draw = torch.rand(count, 5, generator=generator)
    share = how.crop_min + (1 - how.crop_min) * draw[:, 0]
    ratio = torch.exp((2 * draw[:, 1] - 1) * math.log(4 / 3))
    ratio = torch.minimum(torch.maximum(ratio, share * width / height), width / (share * height))
    area = share * height * width
    crop_height = torch.sqrt(area / ratio).clamp(max=height)
    crop_width = torch.sqrt(area * ratio).clamp(max=width)
    top = draw[:, 2] * (height - crop_height)
    left = draw[:, 3] * (width - crop_width)
    edges = torch.stack([top, top + crop_height, left, left + crop_width], dim=1)
    return mirrored(edges, draw[:, 4]) if how.flip else edges


def mirrored(boxes: Tensor, draw: Tensor) -> Tensor:
    """(n,4) boxes, left and right exchanged where the (n,) numbers in [0, 1) are below one half."""
    return torch.where(draw[:, None] < 0.5, boxes[:, [0, 1, 3, 2]], boxes)


def augmented(
    images: Tensor | Sequence[Tensor],
    pixels: InputSpec,
    how: Augmentation,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """(B,3,H,W) uint8, or B images (3,h,w) -> (B,3,S,S): a random crop of each image, mirrored at random.

    With a share, the images are those of the share, and get the crops that they have in the whole batch.
    """
    count = len(images) if share is None else share.count
    # of several sizes one by one, not padded to one size: that costs more, and bits would depend on the others' sizes
    parts = [images] if isinstance(images, Tensor) else [image[None] for image in images]
    if isinstance(images, Tensor):
        boxes = random_boxes(count, images.shape[-2], images.shape[-1], how, generator)
        drawn = [boxes if share is None else share.of(boxes)]
    else:
        places = list(range(count)) if share is None else share.places.tolist()
        own = {place: (image.shape[-2], image.shape[-1]) for place, image in zip(places, images, strict=True)}
        # images of every size draw equally many numbers: one by one stands for the images of other processes
        sizes = [own.get(place, (1, 1)) for place in range(count)]
        every = [random_boxes(1, height, width, how, generator) for height, width in sizes]
        drawn = [every[place] for place in places]
    if how.interpolation is not None:
        pixels = replace(pixels, interpolation=how.interpolation)
    crops = sent(torch.cat(drawn), parts[0].device).split([len(part) for part in parts])
    made = [resample(part, box, pixels, how.transforms != "smooth") for part, box in zip(parts, crops, strict=True)]
    return made[0] if len(made) == 1 else torch.cat(made)
