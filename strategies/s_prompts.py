"""S-Prompts (Wang et al. 2022, arXiv:2207.12819)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clsim import Backbone, ExperienceInfo, Outputs, State, StreamInfo, rng
from clsim.backbones.towers import Tower
from clsim.bases import PromptPools
from clsim.data.batches import Batch
from clsim.parts.heads import LinearHead
from clsim.parts.prompt_pools import AppendedTokens, PerExperience, Progress
from clsim.parts.tuners import require_blocks
from clsim.strategy import Optimizer, Schedule


class SPrompted(nn.Module):
    """A frozen tower with prompts and a head for each experience; an image uses those of the nearest centre."""

    centres: Tensor
    learned: Tensor
    owner: Tensor

    def __init__(self, tower: Tower, info: StreamInfo, how: "SPrompts") -> None:
        super().__init__()
        require_blocks(tower)
        count, bound = info.num_experiences, tower.width**-0.5
        self.tower = tower
        self.progress = Progress(count)
        self.prompts = PerExperience(torch.empty(count, how.prompt_length, tower.width).uniform_(-bound, bound))
        self.heads = nn.ModuleList(LinearHead(tower.out_dim, info.num_classes) for _ in range(count))
        self.register_buffer("centres", torch.full((count, how.centres, tower.out_dim), torch.inf))
        # the classes of each experience; for each class the last experience that had it
        self.register_buffer("learned", torch.zeros(count, info.num_classes, dtype=torch.bool))
        self.register_buffer("owner", torch.zeros(info.num_classes, dtype=torch.int64))

    def forward(self, batch: Batch) -> Outputs:
        known = self.progress.known_task(batch)
        chosen = self.nearest(batch.known_features) if known is None else known
        prompts = self.prompts(self.progress.current)[chosen]
        features = self.tower(batch.known_images, AppendedTokens(prompts))
        if self.training:
            return Outputs(self.heads[self.progress.current](features), features)
        scores = torch.stack([head(features) for head in self.heads], dim=1)
        return Outputs(self.answer(scores, chosen), features, self.progress.detected(batch, chosen))

    def nearest(self, features: Tensor) -> Tensor:
        """(B,E) features -> (B,) experiences of the nearest centres."""
        every = self.centres.flatten(0, 1)
        # without expanding the square: unused places are infinitely far away
        distance = torch.cdist(normalize(features), every, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.argmin(dim=1) // self.centres.shape[1]

    def answer(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """(B,T,K) logits of all heads -> (B,K): logits of the chosen head for the classes that it learned.

        Other classes are ranked below, by the head that learned them last, so that restricted evaluations still work.
        """
        own, known = scores.take_along_dim(chosen[:, None, None], dim=1)[:, 0], self.learned[chosen]
        others = scores.take_along_dim(self.owner[None, None], dim=1)[:, 0]
        floor = own.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True).nan_to_num(posinf=0.0)
        return torch.where(known, own, floor - 1 + others - others.amax(dim=1, keepdim=True))

    def begin(self, index: int, classes: tuple[int, ...]) -> None:
        """Begin the experience `index` with its classes."""
        self.learned[index, list(classes)] = True
        self.owner[list(classes)] = index

    def close(self, features: Tensor, seed: int) -> None:
        """Store the centres of the experience's (N,E) features."""
        found = centres(normalize(features), self.centres.shape[1], seed)
        self.centres[self.progress.current, : len(found)] = found


def centres(features: Tensor, count: int, seed: int) -> Tensor:
    """(N,D) -> (count,D) k-means centres in float32; fewer if there are fewer distinct features."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = features.double().cpu().numpy()
    groups = min(count, len(np.unique(rows, axis=0)))
    with threadpool_limits(limits=1):  # threads add numbers in varying order, but a resumed run must get the same sums
        found = KMeans(groups, n_init=1, random_state=seed % 2**32).fit(rows)
    return torch.from_numpy(found.cluster_centers_).float().to(features.device)


@dataclass(kw_only=True)
class SPrompts(PromptPools):
    """S-Prompts: prompts and a head for each experience, chosen by nearest centre. Wang et al. 2022, arXiv:2207.12819.

    This is the image version (S-iPrompts): prompts at the input of a frozen tower. The centres are from k-means over
    the frozen tower's features, scaled to unit length; distances are Euclidean. If the protocol reveals the task, the
    task's own prompts and head are used. No experience changes what another one has learned.
    """

    prompt_length: int = 10  # tokens of a set of prompts
    centres: int = 5  # k-means centres of the features of an experience
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "cosine"
    weight_decay: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "prompt_length", "centres")

    def build(self, backbone: Backbone, info: StreamInfo) -> nn.Module:
        return SPrompted(backbone.image, info, self)

    def begin(self, learner: nn.Module, experience: ExperienceInfo) -> None:
        super().begin(learner, experience)
        assert isinstance(learner, SPrompted)
        learner.begin(experience.index, experience.classes)

    def after_training_exp(self, s: State) -> None:
        features = torch.cat([batch.known_features for batch in s.clean_batches()])
        s.learner_as(SPrompted).close(features, rng.derive(s.seed, "centres", s.experience.index))
