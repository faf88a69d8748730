"""Tip-Adapter (Zhang et al. 2022, arXiv:2111.03930)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, Outputs, State, Strategy, StreamInfo, rng
from clsim.data.batches import Batch
from clsim.parts.text import class_features, require_places

SCALE = 100.0  # of cosines to texts; fixed, also where CLIP's own scale is another
ALPHAS, BETAS = torch.linspace(0.1, 3, 20), torch.linspace(0.1, 7, 200)
MOST_QUERIES = 1000  # keys that are left out, one at a time, to choose alpha and beta


class KeyCache(nn.Module):
    """Class texts, and unit features of some training images of each class as keys."""

    classes: Tensor
    keys: Tensor
    counts: Tensor
    factors: Tensor

    def __init__(self, classes: Tensor, shots: int, alpha: float, beta: float) -> None:
        """`classes`: (K,E) unit features of texts; `shots`: keys of a class."""
        super().__init__()
        count, width = classes.shape
        self.register_buffer("classes", classes)
        self.register_buffer("keys", torch.zeros(count, shots, width))
        self.register_buffer("counts", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("factors", torch.tensor([alpha, beta]))

    def forward(self, batch: Batch) -> Outputs:
        features = batch.known_features
        with torch.autocast(features.device.type, enabled=False):
            unit = normalize(features.float(), dim=1)
            logits = SCALE * unit @ self.classes.T + self.from_keys(self.affinities(unit))
        return Outputs(logits, features)

    def affinities(self, unit: Tensor) -> Tensor:
        """(B,E) unit features -> (B,K,S) cosines to the keys; minus infinity where a class has no such key."""
        cosines: Tensor = (unit @ self.keys.flatten(0, 1).T).unflatten(1, self.keys.shape[:2])  # type: ignore[no-untyped-call]
        places = torch.arange(self.keys.shape[1], device=unit.device)
        return cosines.masked_fill(places >= self.counts[:, None], -torch.inf)

    def from_keys(self, affinities: Tensor) -> Tensor:
        """(B,K,S) -> (B,K): eq. 4 of the paper without the texts."""
        alpha, beta = self.factors
        votes: Tensor = alpha * torch.exp(-beta * (1 - affinities)).sum(dim=2)
        return votes

    @torch.no_grad()
    def choose(self, seen: Tensor, draw: torch.Generator) -> None:
        """Set alpha and beta to those that classify the keys best, each without itself; `seen` (K,) are compared."""
        places = torch.arange(self.keys.shape[1], device=self.keys.device) < self.counts[:, None]
        order = torch.randperm(int(places.sum()), generator=draw)[:MOST_QUERIES].to(self.keys.device)
        labels, own = (each[order] for each in places.nonzero(as_tuple=True))
        unit = self.keys[labels, own]
        affinities = self.affinities(unit)
        affinities[torch.arange(len(labels), device=unit.device), labels, own] = -torch.inf
        texts = SCALE * unit @ self.classes.T
        best = -1
        for beta in BETAS.tolist():
            votes = torch.exp(-beta * (1 - affinities)).sum(dim=2)
            for alpha in ALPHAS.tolist():
                logits = (texts + alpha * votes).masked_fill(~seen, -torch.inf)
                right = int((logits.argmax(dim=1) == labels).sum())
                if right > best:
                    best = right
                    self.factors.copy_(torch.tensor([alpha, beta]))


@dataclass(kw_only=True)
class TipAdapter(Strategy):
    """CLIP with a cache of training images: texts and neighbours decide together; no training. Zhang et al. 2022.

    arXiv:2111.03930. A key is the unit mean of an image's features over `views` crops. The paper chooses alpha and beta
    on a validation set; here the keys themselves are classified, each without itself, by texts and the other keys.
    """

    shots: int = 16  # training images of each class that are kept as keys, drawn at random
    views: int = 10  # augmented views of each of these images; 0: the clean image
    alpha: float = 1.17  # weight of the keys
    beta: float = 1.0  # sharpness: the weight of a key falls with exp(-beta (1 - cosine))
    search: bool = True  # choose alpha and beta after each experience; no: as given
    templates: tuple[str, ...] = (
        "a photo of a {}.",
    )  # texts with {} for the class name; features of several texts are averaged
    crop_min: float = 0.5

    needs_text: ClassVar[bool] = True
    scores_unseen: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "shots")
        self.at_least(0, "views", "alpha")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        require_places(self.templates)

    def unused(self, info: StreamInfo) -> dict[str, str]:
        return super().unused(info) | (dict.fromkeys(("alpha", "beta"), "search=yes chooses it") if self.search else {})

    def reads(self) -> set[str]:
        return {"features"}

    def feature_views(self) -> int:
        return self.views

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        classes = class_features(backbone.text_tower, info.class_names, self.templates)
        return KeyCache(classes, self.shots, self.alpha, self.beta)

    def fit(self, s: State) -> None:
        self.add_keys(s)
        self.choose(s)

    def add_keys(self, s: State) -> None:
        """Keep images of the experience's classes as keys, as far as there is room."""
        cache, draw = s.learner_as(KeyCache), rng.generator(s.seed, "keys", s.experience.index)
        for label in s.experience.classes:
            rows, first = s.experience.rows[s.experience.labels == label], int(cache.counts[label])
            count = min(len(rows), self.shots - first)
            if count:
                # neighbours: the table's order is random, and a bank computes blocks of neighbours
                start = int(torch.randint(len(rows) - count + 1, (), generator=draw))
                keys = self._keys(s, np.sort(rows)[start : start + count])
                with torch.no_grad():
                    cache.keys[label, first : first + count] = keys
                    cache.counts[label] += count

    def _keys(self, s: State, rows: NDArray[np.int64]) -> Tensor:
        """(n,) rows -> (n,E) unit keys."""
        features = s.view_features(rows).mean(dim=0) if self.views else s.features(rows)
        return normalize(features, dim=1)

    def choose(self, s: State) -> None:
        """Choose alpha and beta if this is asked for."""
        if self.search:
            draw = rng.generator(s.seed, "queries", s.experience.index)
            s.learner_as(KeyCache).choose(s.class_mask(s.seen), draw)
