"""Side-tuning (Zhang et al. 2019, arXiv:1912.13503)."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clsim import Backbone, ExperienceInfo, Strategy, StreamInfo
from clsim.backbones.towers import Tower
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.learners import Headed


class SideNetwork(nn.Module):
    """Four convolutions, each at half the size of the one before, and a mean: (B,3,H,W) -> (B,D)."""

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        widths = [3, channels, 2 * channels, 4 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            # group norms: with batch norms, an image's features would depend on its batch
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(widths[-1], out_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) images -> (B,D) features."""
        features: Tensor = self.out(self.layers(images).mean(dim=(2, 3)))
        return features


class SideTuned(nn.Module):
    """s(a) base + (1 - s(a)) side, with s the logistic function and a = 0 at first.

    Zhang et al. 2019, arXiv:1912.13503, section 3. With several networks, each task has one, with its own weight. Those
    of other tasks require no gradients; otherwise an optimizer with momentum would still change them.
    """

    def __init__(self, tower: Tower, channels: int, networks: int) -> None:
        super().__init__()
        self.tower = tower
        self.sides = nn.ModuleList(SideNetwork(channels, tower.out_dim) for _ in range(networks))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(networks))
        self.current = 0  # the network that learns, or the last one that learned

    def turn_to(self, task: int) -> None:
        """Let only the network of this task learn."""
        self.current = task
        for i, (side, weight) in enumerate(zip(self.sides, self.weights, strict=True)):
            side.requires_grad_(i == task)
            weight.requires_grad_(i == task)

    def forward(self, batch: Batch) -> Tensor:
        """A batch -> (B,D) features from the network of the batch's task, or from the current one if it is unknown."""
        task = min(self.current if batch.task is None else batch.task, len(self.sides) - 1)
        with torch.no_grad():
            base = self.tower(batch.known_images).float()
        share = self.weights[task].sigmoid()
        mixed: Tensor = share * base + (1 - share) * self.sides[task](batch.known_images).float()
        return mixed


@dataclass(kw_only=True)
class Side(Strategy):
    """Side-tuning: a small network next to the frozen tower, with mixed features. Zhang et al. 2019, arXiv:1912.13503.

    One network for the whole stream. In the task protocol, where the task is known at test, one per experience.
    """

    channels: int = 32  # channels of the side network's first convolution

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "channels")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        networks = info.num_experiences if info.tells_task else 1
        side = SideTuned(backbone.image, self.channels, networks)
        return Headed(side, LinearHead(backbone.image.out_dim, info.num_classes))

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        assert isinstance(learner, Headed) and isinstance(learner.images, SideTuned)
        learner.images.turn_to(experience.task_label or 0)
