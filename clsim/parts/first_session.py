"""First-session tuning: a tuner learns in the first experience, and later classifiers are computed on its features."""

import math

import torch
from torch import Tensor, nn

from clsim.backbones.towers import Tower, TunerHooks
from clsim.data.batches import Batch
from clsim.outputs import Outputs
from clsim.parts.heads import CosineHead


class AdaptFormer(nn.Module, TunerHooks):
    """A bottleneck next to the MLP of every block: mlp(norm(x)) + 0.1 up(dropout(relu(down(x)))).

    Chen et al. 2022, arXiv:2205.13535. The bottleneck reads the residual stream x before the block's second norm, as in
    the code of APER and RanPAC. `up` and the biases start at zero.
    """

    scale = 0.1
    dropout = 0.1

    def __init__(self, tower: Tower, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(tower.width, bottleneck) for _ in range(tower.depth))
        self.up = nn.ModuleList(nn.Linear(bottleneck, tower.width) for _ in range(tower.depth))
        for down, up in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)  # type: ignore[arg-type]

    def branch(self, block: int, name: str, x: Tensor, out: Tensor) -> Tensor:
        if name != "mlp":
            return out
        hidden = nn.functional.dropout(self.down[block](x).relu(), self.dropout, self.training)
        return out + self.scale * self.up[block](hidden).to(out.dtype)  # type: ignore[no-any-return]


class FirstSession(nn.Module):
    """Features, a cosine head with which their tuner is trained, and the classifier that is used in evaluation."""

    def __init__(
        self, images: nn.Module, head: CosineHead | None, classifier: nn.Module, with_frozen: bool = False
    ) -> None:
        """`head`: None if nothing is trained. `with_frozen`: the classifier reads the frozen tower's features, too."""
        super().__init__()
        self.images = images
        self.head = head
        self.classifier = classifier
        self.with_frozen = with_frozen

    def forward(self, batch: Batch) -> Outputs:
        """A batch -> Outputs with logits and the input features of the head in training, else of the classifier."""
        features = self.images(batch)
        if self.training and self.head is not None:
            return Outputs(self.head(features), features)
        if self.with_frozen:
            features = torch.cat([batch.known_features, features.float()], dim=1)
        return Outputs(self.classifier(features), features)
