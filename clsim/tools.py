"""Tools: services of a run for handlers, losses and `fit`, which call them as methods of State and Step."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from clsim import parallel, rng
from clsim.data.batches import Batch, Loader
from clsim.data.transforms import Augmentation
from clsim.events import State
from clsim.outputs import Outputs, as_outputs

# Images that are evaluated together; predictions do not depend on it. l2p with vit_micro on one CPU thread: 32 to 256
# are equally fast, 512 is a quarter slower. The last batch is filled up, so a larger size wastes more on small tests.
EVAL_BATCH = 64

# The same for learners that read features only. There overhead counts most: on 10,000 images, coop
# is evaluated 2.7 times as fast as with 64, ncm 3 times.
EVAL_FEATURES = 512


def eval_batch(reads: Collection[str]) -> int:
    """Images that are evaluated together by a learner that reads these inputs."""
    return EVAL_BATCH if "images" in reads else EVAL_FEATURES


@dataclass
class Tools:
    """Forward passes, batches and features of one run, and its log."""

    learner: nn.Module
    loader: Loader  # of the training table
    how: Augmentation
    bf16: bool
    record: Callable[[State, str, Any], None] = lambda s, name, value: None
    world: parallel.World = field(default_factory=parallel.current)  # the processes that divide this run's batches

    def autocast(self) -> AbstractContextManager[object]:
        """The run's precision."""
        return torch.autocast(self.loader.device.type, torch.bfloat16, enabled=self.bf16)

    def outputs(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Outputs:
        """The learner's outputs for a batch, with float32 logits; `weights` replace its tensors by name."""
        own, target = batch.own(), batch.target
        with self.autocast(), self.world.computing(self.learner, batch.share):
            returned = self.learner(own) if weights is None else functional_call(self.learner, dict(weights), own)
        shares = [each.share for each in (batch, target) if each is not None and each.share is not None]
        outputs = self.world.whole(as_outputs(returned), shares)
        return replace(outputs, logits=outputs.logits.float())

    def clean(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """Labelled batches of these rows, in order, not augmented."""
        return self.loader.clean(rows, EVAL_BATCH)

    def augmented(self, rows: NDArray[np.int64], replayed: int, name: str, s: State) -> Batch:
        """A labelled, augmented batch; the last `replayed` rows are replayed images. `name`: the random stream."""
        draw, share = rng.generator(s.seed, name, s.step), self.world.share(len(rows))
        batch = self.loader.train(rows, self.how, draw, replayed, share)
        return replace(batch, task=s.experience.task_label)

    def target(self, rows: NDArray[np.int64], size: int, s: State, beside: Batch) -> Batch:
        """An augmented batch of `size` of the (n,) unlabelled rows, from repeated shuffled passes over them.

        `beside`: the labelled batch that it belongs to.
        """
        passes, places = np.divmod(np.arange(s.step * size, (s.step + 1) * size), len(rows))
        chosen = np.empty(size, dtype=np.int64)
        for number in np.unique(passes).tolist():
            draw = rng.generator(s.seed, "target order", s.experience.index, number)
            order = torch.randperm(len(rows), generator=draw).numpy()
            chosen[passes == number] = rows[order[places[passes == number]]]
        draw, share = rng.generator(s.seed, "target augmentation", s.step), self.world.share(size, beside.share)
        return self.loader.target(chosen, self.how, draw, share)

    def features(self, rows: NDArray[np.int64]) -> Tensor:
        """(n,D) float32 features of rows of the training table, from the bank. Raises RuntimeError without one."""
        if self.loader.bank is None:
            raise RuntimeError('there is no feature bank: the strategy\'s reads() must have "features"')
        found: Tensor = self.loader.bank.rows(rows).to(self.loader.device)
        return found

    def view_features(self, rows: NDArray[np.int64]) -> Tensor:
        """(V,n,D) float32 features of the augmented views of rows of the training table, from their banks."""
        if not self.loader.views:
            raise RuntimeError("there are no augmented views: the strategy's feature_views() must be above 0")
        return torch.stack([bank.rows(rows) for bank in self.loader.views]).to(self.loader.device)

    def log(self, s: State, name: str, value: Any) -> None:
        """See State."""
        self.record(s, name, value)
