"""The only training and evaluation loop. It raises the events; everything else answers them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from clsim import metrics, rng
from clsim.data.batches import Batch, Loader
from clsim.data.streams import Benchmark, Experience
from clsim.data.transforms import Augmentation
from clsim.errors import RunFailed
from clsim.events import Part, State
from clsim.strategy import Strategy

EVAL_BATCH = 64  # images that are evaluated together; of no influence on predictions


@dataclass
class Cost:
    """What a run has spent so far."""

    seconds_training: float = 0.0
    seconds_evaluation: float = 0.0
    images: int = 0  # of the stream, each time one was trained on


@dataclass
class Loop:
    """One strategy on one benchmark. `run` goes on from wherever `state` stands."""

    strategy: Strategy
    benchmark: Benchmark
    train_loader: Loader
    test_loaders: Mapping[str, Loader]  # by the fingerprints of their tables
    state: State
    parts: Sequence[Part]  # after the strategy's own handlers, in this order: its parts, then recorders
    bf16: bool
    save: Callable[["Loop"], None]  # called where the run can be resumed
    cost: Cost = field(default_factory=Cost)

    def run(self) -> None:
        """Train on every experience that is left, evaluating after each. Raises RunFailed if the loss is not finite."""
        s = self.state
        experiences = self.strategy.experiences(self.benchmark.train_stream)
        self._raise("before_training")
        if not s.correct and self._scores_before_training(len(experiences)):
            s.before = True
            self._evaluate(self.benchmark.test_stream)
            self.save(self)
        for experience in experiences:
            if experience.index < s.trained:
                continue
            self._train(experience, single=len(experiences) == 1)
            s.trained = experience.index + 1
            self._skip_rows_up_to(experience.index)
            self._evaluate(self._columns(experience))
            self.save(self)
        self._raise("after_training")

    def _scores_before_training(self, num_experiences: int) -> bool:
        """Whether a row of accuracies before any training means something."""
        if num_experiences != len(self.benchmark.train_stream):
            return False
        return self.strategy.scores_unseen or self.benchmark.protocol not in ("class", "task")

    def _columns(self, experience: Experience) -> Sequence[Experience]:
        """The test experiences to evaluate after this one: where classes are new, only those learned."""
        stream = self.benchmark.test_stream
        if self.strategy.scores_unseen or self.benchmark.protocol not in ("class", "task"):
            return stream
        return stream[: experience.index + 1]

    def _skip_rows_up_to(self, index: int) -> None:
        """Empty rows for experiences that were learned together with this one (joint training)."""
        while len(self.state.correct) < index + self.state.before:
            self.state.correct.append([None] * len(self.benchmark.test_stream))

    # training

    def _train(self, experience: Experience, single: bool) -> None:
        s = self.state
        s.experience = experience
        s.seen = tuple(sorted({*s.seen, *experience.classes}))
        s.mask, s.forward, s.replay_batch = self.strategy.mask, self._forward, self._replay_batch
        s.clean_batches = lambda: self.train_loader.clean(experience.rows, EVAL_BATCH)
        per_epoch = -(-len(experience.rows) // self.strategy.batch_size) if self.strategy.has_gradients else 0
        s.exp_steps, s.exp_first = per_epoch * self.strategy.epochs, s.step - per_epoch * s.epoch
        resumed = s.epoch > 0  # only where a single experience was interrupted between epochs
        if not resumed:
            self._raise("before_training_exp")
        if self.strategy.has_gradients:
            self._epochs(experience, per_epoch, resumed, single)
        else:
            self._fit(experience)
        s.epoch = 0
        began = time.perf_counter()
        self._raise("after_training_exp")
        self.cost.seconds_training += time.perf_counter() - began  # what parts do then is part of a method's price

    def _fit(self, experience: Experience) -> None:
        began = time.perf_counter()
        self.state.learner.eval()
        with torch.no_grad(), self._autocast():
            self.strategy.fit(self.state)
        self.cost.images += len(experience.rows)
        self.cost.seconds_training += time.perf_counter() - began

    def _epochs(self, experience: Experience, per_epoch: int, resumed: bool, single: bool) -> None:
        s, strategy = self.state, self.strategy
        if not resumed:
            s.optimizer = strategy.configure_optimizer(s.learner)
        s.learner.train()
        while s.epoch < strategy.epochs:
            began = time.perf_counter()
            self._raise("before_training_epoch")
            draw = rng.generator(s.seed, "data order", experience.index, s.epoch)
            order = torch.randperm(len(experience.rows), generator=draw).numpy()
            # drop-out and the like draw from the global state, which starts anew so that a resumed run draws the same
            torch.manual_seed(rng.derive(s.seed, "learner", experience.index, s.epoch))
            for i in range(per_epoch):
                _set_lr(s.optimizer, strategy.learning_rate_at(s.epoch, i, per_epoch))
                s.rows = experience.rows[order[i * strategy.batch_size : (i + 1) * strategy.batch_size]]
                self._step()
            self._raise("after_training_epoch")
            s.epoch += 1
            self.cost.seconds_training += time.perf_counter() - began
            if single and s.epoch < strategy.epochs:
                self.save(self)

    def _step(self) -> None:
        s, strategy = self.state, self.strategy
        assert s.rows is not None and s.optimizer is not None and s.experience is not None
        s.replay = None
        self._raise("before_training_iteration")
        rows, replayed = s.rows, 0
        if s.replay is not None:
            rows, replayed = np.concatenate([s.rows, s.replay]), len(s.replay)
        s.batch = self._batch(rows, replayed, "augmentation")
        if s.experience.unlabelled is not None:
            s.batch = replace(s.batch, target=self._target(s.experience, s.experience.unlabelled))
        self._raise("before_forward")
        s.logits = self._forward(s.batch)
        self._raise("after_forward")
        s.loss = strategy.loss(s)
        self._raise("before_backward")
        if not torch.isfinite(s.loss):
            raise RunFailed(
                f"the loss is {s.loss.item()} at step {s.step}; the last checkpoint is kept. Try a smaller lr"
            )
        s.optimizer.zero_grad()
        s.loss.backward()
        self._raise("after_backward")
        if strategy.clip_grad > 0:
            nn.utils.clip_grad_norm_((p for p in s.learner.parameters() if p.requires_grad), strategy.clip_grad)
        self._raise("before_update")
        s.optimizer.step()
        s.step += 1
        self.cost.images += len(s.rows)
        self._raise("after_update")
        self._raise("after_training_iteration")

    def _batch(self, rows: NDArray[np.int64], replayed: int, name: str) -> Batch:
        """An augmented batch for this step; `name` is that of the random stream."""
        how = Augmentation(self.strategy.crop_min, self.benchmark.flip)
        batch = self.train_loader.train(rows, how, rng.generator(self.state.seed, name, self.state.step), replayed)
        assert self.state.experience is not None
        return replace(batch, task=self.state.experience.task_label)

    def _target(self, experience: Experience, rows: NDArray[np.int64]) -> Batch:
        """As many target images as the step has source images, from one shuffled pass over the target after another."""
        s, size = self.state, self.strategy.batch_size
        passes, places = np.divmod(np.arange(s.step * size, (s.step + 1) * size), len(rows))
        chosen = np.empty(size, dtype=np.int64)
        for number in np.unique(passes).tolist():
            draw = rng.generator(s.seed, "target order", experience.index, number)
            order = torch.randperm(len(rows), generator=draw).numpy()
            chosen[passes == number] = rows[order[places[passes == number]]]
        how = Augmentation(self.strategy.crop_min, self.benchmark.flip)
        return self.train_loader.target(chosen, how, rng.generator(s.seed, "target augmentation", s.step))

    def _replay_batch(self, rows: NDArray[np.int64], name: str) -> Batch:
        """A batch of remembered rows alone, for parts that learn them beside the step's own batch."""
        return self._batch(rows, len(rows), name)

    def _forward(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, num_classes) logits in float32; `weights` replace parameters and buffers of the learner by name."""
        learner = self.state.learner
        with self._autocast():
            logits: Tensor = learner(batch) if weights is None else functional_call(learner, dict(weights), (batch,))
        return logits.float()

    # evaluation

    def _evaluate(self, columns: Sequence[Experience]) -> None:
        s, began = self.state, time.perf_counter()
        self._raise("before_eval")
        s.learner.eval()
        s.total = [len(experience.rows) for experience in self.benchmark.test_stream]
        row: list[int | None] = [None] * len(s.total)
        everything = s.seen if s.trained and not self.strategy.scores_unseen else tuple(range(s.info.num_classes))
        together = [
            (column.table.fingerprint, everything if self.benchmark.protocol != "task" else column.classes)
            for column in columns
        ]
        for key in dict.fromkeys(together):
            table, allowed = key
            group = [column for column, own in zip(columns, together, strict=True) if own == key]
            rows = np.sort(np.concatenate([column.rows for column in group]))
            task = group[0].task_label  # in the task protocol, classes tell the tasks apart
            predicted = predict_rows(s.learner, self.test_loaders[table], rows, allowed, self._autocast, task)
            for column in group:
                self._raise("before_eval_exp")
                own = predicted[np.searchsorted(rows, column.rows)]
                row[column.index] = int((own == column.labels).sum())
                if self.benchmark.protocol == "pair" and column.index == 0:
                    s.confusion = metrics.confusion(column.labels, own, s.info.num_classes)
                self._raise("after_eval_exp")
        s.correct.append(row)
        s.metrics = self.measures().values
        self.cost.seconds_evaluation += time.perf_counter() - began
        self._raise("after_eval")

    def measures(self) -> metrics.Measures:
        """Every measure of the protocol, as far as the run has come."""
        s = self.state
        if self.benchmark.protocol == "pair":
            return metrics.adaptation(s.correct, s.total, s.before, s.confusion, self.strategy.scores_unseen)
        if self.benchmark.tests_new_classes:
            return metrics.base_to_new(s.correct, s.total)
        return metrics.measures(s.correct, s.total, before=s.before)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.train_loader.device.type, torch.bfloat16, enabled=self.bf16)

    def _raise(self, event: str) -> None:
        for part in (self.strategy, *self.parts):
            handler = getattr(part, event, None)
            if handler is not None:
                handler(self.state)


@torch.no_grad()
def predict_rows(
    learner: nn.Module,
    loader: Loader,
    rows: NDArray[np.int64],
    allowed: Sequence[int],
    autocast: Callable[[], AbstractContextManager[object]],
    task: int | None = None,
) -> NDArray[np.int64]:
    """The class, among `allowed`, that the learner gives each of (n,) rows of the loader's table."""
    classes = torch.tensor(allowed, device=loader.device)
    predicted = []
    for count, batch in loader.unlabelled(rows, EVAL_BATCH):
        with autocast():
            logits = learner(replace(batch, task=task)).float()
        predicted.append(classes[logits[:count, classes].argmax(dim=1)].cpu())
    return torch.cat(predicted).numpy()


def _set_lr(optimizer: torch.optim.Optimizer | None, lr: float) -> None:
    assert optimizer is not None
    for group in optimizer.param_groups:
        group["lr"] = lr
