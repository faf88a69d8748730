"""Random crops with the distributions of two libraries whose transforms published results were made with.

Their boxes have whole pixels; those of clsim's own crops (clsim/data/transforms.py) may lie anywhere.
"""

import math

import torch
from torch import Tensor


def torchvision_boxes(count: int, height: int, width: int, crop_min: float, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes (top, bottom, left, right), distributed as those of torchvision's RandomResizedCrop.

    A box gets up to ten draws of an area, uniform in [crop_min, 1], and a ratio, log-uniform in [3/4, 4/3], with both
    sides rounded. The first that fits into the image is placed at random. If none fits, the box is the largest central
    one with a ratio in [3/4, 4/3].
    """
    draw = torch.rand(count, 22, generator=generator, dtype=torch.float64)
    area = (crop_min + (1 - crop_min) * draw[:, :10]) * height * width
    ratio = torch.exp((2 * draw[:, 10:20] - 1) * math.log(4 / 3))
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round()  # halves to even, as in Python
    image = torch.tensor([height, width], dtype=torch.float64)
    found, chosen = _first((sides > 0).all(dim=2) & (sides <= image).all(dim=2), sides)
    corner = (draw[:, 20:] * (image - chosen + 1)).floor()
    central = torch.tensor([min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))], dtype=torch.float64)
    middle = ((image - central) / 2).floor()
    return _boxes(torch.where(found, corner, middle), torch.where(found, chosen, central))


def tensorflow_boxes(count: int, height: int, width: int, crop_min: float, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes (top, bottom, left, right), distributed as those of `tf.image.sample_distorted_bounding_box`.

    The ratio is uniform in [0.75, 1.33], the height uniform between the smallest and the largest whole number at which
    the area fits. A box that does not touch the image's lower and right edges cannot reach them: TensorFlow draws from
    one place too few. After 100 draws without a fit the box is the whole image.
    """
    draw = torch.rand(count, 100, 4, generator=generator, dtype=torch.float64)
    ratio = 0.75 + (1.33 - 0.75) * draw[..., 0]
    low, most = crop_min * height * width, height * width
    smallest, largest = (low / ratio).sqrt().round(), (most / ratio).sqrt().round()
    wide = (largest * ratio).round() > width
    largest = torch.where(wide, ((width + 0.5 - 1e-7) / ratio).floor(), largest)
    largest = (largest - (wide & ((largest * ratio).round() > width)).double()).clamp(max=height)
    smallest = torch.minimum(smallest, largest)
    tall = smallest + (draw[..., 1] * (largest - smallest + 1)).floor()
    tall = tall + (tall * (tall * ratio).round() < low).double()  # areas that rounding has put outside of the range
    tall = tall - (tall * (tall * ratio).round() > most).double()
    sides = torch.stack([tall, (tall * ratio).round()], dim=2)
    image = torch.tensor([height, width], dtype=torch.float64)
    area = sides.prod(dim=2)
    fits = (area >= low) & (area <= most) & (sides > 0).all(dim=2) & (sides <= image).all(dim=2)
    found, chosen = _first(fits, sides)
    _, place = _first(fits, draw[..., 2:])
    return _boxes((place * (image - chosen)).floor() * found, torch.where(found, chosen, image))


def _first(fits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(n,T) which of T draws fit, (n,T,2) values -> (n,1) whether one fits, and (n,2) the values of the first."""
    first = fits.int().argmax(dim=1)
    return fits.any(dim=1, keepdim=True), values[torch.arange(len(values)), first]


def _boxes(corner: Tensor, sides: Tensor) -> Tensor:
    """(n,2) top and left, (n,2) height and width -> (n,4) float32 boxes."""
    stop = corner + sides
    return torch.stack([corner[:, 0], stop[:, 0], corner[:, 1], stop[:, 1]], dim=1).float()
