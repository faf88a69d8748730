"""The only training and evaluation loop. It raises the events; everything else handles them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import checked, metrics, rng
from clsim.backbones.features import working_seconds
from clsim.data.batches import Loader
from clsim.data.protocols import Protocol
from clsim.data.streams import Benchmark, Experience
from clsim.errors import RunFailed
from clsim.evaluation import Predicted, Together, groups, predict_rows, predict_together
from clsim.events import Part, State, Step
from clsim.learner import begin
from clsim.parts.regularisers import trained
from clsim.strategy import Strategy
from clsim.tools import Tools, eval_batch


@dataclass
class Cost:
    """What a run has spent so far."""

    seconds_training: float = 0.0
    seconds_evaluation: float = 0.0
    images: int = 0  # trained images of the stream; an image counts each time it is trained on


@dataclass
class Loop:
    """One strategy on one benchmark. `run` continues from the position in `state`."""

    strategy: Strategy
    benchmark: Benchmark
    train_loader: Loader
    test_loaders: Mapping[str, Loader]  # by the fingerprints of their tables
    state: State
    parts: Sequence[Part]  # after the strategy's own handlers, in this order: its parts, then recorders
    bf16: bool
    save: Callable[["Loop"], None]  # called at points from which the run can be resumed
    save_seconds: float = math.inf  # seconds between saves inside an experience
    eval_every: int | None = None  # images of the stream between evaluations inside an experience
    inside: bool = False  # whether the current experience has begun and not ended: a resumed run continues it
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        how = self.strategy.augmentation(self.benchmark.flip)
        self.tools = Tools(self.state.learner, self.train_loader, how, self.bf16)
        self.state.tools = self.tools
        self.state.mask = self.strategy.mask
        self._losses: list[Tensor] = []  # of the updates since the last check
        self._saved_at = time.monotonic()
        self._counted_at = working_seconds()

    @property
    def rules(self) -> Protocol:
        """The benchmark's protocol."""
        return self.benchmark.rules

    def run(self) -> None:
        """Train on each remaining experience and evaluate after it. Raises RunFailed if the loss is not finite."""
        s = self.state
        experiences = self.strategy.experiences(self.benchmark.train_stream)
        self._start()
        if not s.correct and self._has_baseline(len(experiences)):
            s.has_baseline_row = True
            self._evaluate(self.benchmark.test_stream)
            self._save()
        for experience in experiences:
            if experience.index < s.trained:
                continue
            self._learn(experience, single=len(experiences) == 1)
            s.trained = experience.index + 1
            self._skip_rows_up_to(experience.index)
            self._evaluate(self._columns(experience.index))
            self._save()
        self._raise("after_training", s)

    def _start(self) -> None:
        """Call the handlers of before_training. A resumed run calls them again, but its journal has what they log."""
        record = self.tools.record
        if self.state.correct or self.state.step:
            self.tools.record = lambda s, name, value: None
        self._raise("before_training", self.state)
        self.tools.record = record

    def _has_baseline(self, num_experiences: int) -> bool:
        """Whether accuracies before any training are meaningful."""
        whole = num_experiences == len(self.benchmark.train_stream)
        return whole and self.rules.tests_ahead(self.strategy.scores_unseen)

    def _columns(self, index: int) -> Sequence[Experience]:
        """The test experiences to evaluate after learning experience `index`."""
        columns = self.rules.tested_after(index, self.benchmark.test_stream, self.strategy.scores_unseen)
        if self.rules.only_seen:
            columns = [column for column in columns if set(column.classes) <= set(self.state.seen)]
        return columns

    def _skip_rows_up_to(self, index: int) -> None:
        """Empty rows for experiences that were learned together with this one (joint training)."""
        s = self.state
        while len(s.correct) < index + s.has_baseline_row:
            s.correct.append([None] * len(self.benchmark.test_stream))

    def _save(self) -> None:
        self.save(self)
        self._saved_at = time.monotonic()

    # training

    def _learn(self, experience: Experience, single: bool) -> None:
        s, strategy = self.state, self.strategy
        s.current = experience
        passes = self._passes(experience)
        if passes:
            s.current = experience = replace(experience, rows=strategy.rows_for(s))
        if experience.boundary:
            s.seen = tuple(sorted({*s.seen, *experience.classes}))
        whole, rest = divmod(len(experience.rows), strategy.batch_size)
        per_epoch = whole + (rest > 0 and not (strategy.drop_last and whole)) if passes else 0
        s.exp_steps, s.exp_first = per_epoch * passes, s.step - per_epoch * s.epoch - s.epoch_steps
        if not self.inside:
            self._begin(experience, passes)
        if passes:
            self._epochs(experience, passes, per_epoch, single)
        self._end(experience, passes)

    def _passes(self, experience: Experience) -> int:
        """Passes over an experience: what the strategy asks for, at most one if its images arrive in order."""
        passes = self.strategy.epochs_for(experience.info)
        if not isinstance(passes, Integral) or passes < 0:
            name = type(self.strategy).__name__
            raise RunFailed(f"{name}.epochs_for must return a whole number of at least 0, not {passes!r}")
        return min(passes, 1) if experience.ordered else int(passes)

    def _begin(self, experience: Experience, passes: int) -> None:
        """Prepare the learner, call the handlers, and make an optimizer over the parameters that now learn."""
        s = self.state
        if experience.boundary:
            begin(self.strategy, s.learner, experience.info, s.seed, self.train_loader.device)
            s.begun = (*s.begun, experience.info)
            self._raise("before_training_exp", s)
        if passes and (experience.boundary or s.made_optimizer is None):
            s.made_optimizer = self.strategy.configure_optimizer(s.learner)
        self.inside = True

    def _end(self, experience: Experience, passes: int) -> None:
        """Call `fit` if the strategy has one, then the handlers. The handlers' time is part of a method's cost."""
        s = self.state
        began = working_seconds()
        s.epoch = s.epoch_steps = 0
        if experience.boundary:
            if type(self.strategy).fit is not Strategy.fit:
                s.learner.eval()
                with torch.no_grad():  # and no autocast: sums over a whole experience need their digits
                    self.strategy.fit(s)
                self.cost.images += 0 if passes else len(experience.rows)
            self._raise("after_training_exp", s)
        self.inside = False
        self.cost.seconds_training += working_seconds() - began

    def _epochs(self, experience: Experience, passes: int, per_epoch: int, single: bool) -> None:
        s = self.state
        self.tools.world.prepare(type(self.strategy).__name__, s.learner)
        s.learner.train()
        while s.epoch < passes:
            self._counted_at = working_seconds()
            if not s.epoch_steps:
                self._raise("before_training_epoch", s)
                # drop-out uses the global random state: set it, so that a resumed run draws the same numbers
                torch.manual_seed(rng.derive(s.seed, "learner", experience.index, s.epoch))
            self._epoch(experience, per_epoch)
            self._check_losses()
            self._raise("after_training_epoch", s)
            s.epoch, s.epoch_steps = s.epoch + 1, 0
            self._count_time()
            if s.epoch < passes and (single or self._save_is_due()):
                self._save()

    def _epoch(self, experience: Experience, per_epoch: int) -> None:
        """The remaining steps of an epoch."""
        s, size = self.state, self.strategy.batch_size
        if experience.ordered:
            order = np.arange(len(experience.rows))
        else:
            draw = rng.generator(s.seed, "data order", experience.index, s.epoch)
            order = torch.randperm(len(experience.rows), generator=draw).numpy()
        rates = Rates(s.optimizer, self.strategy.learning_rate)
        while s.epoch_steps < per_epoch:
            rates.set(self.strategy.learning_rate_at(s.epoch, s.epoch_steps, per_epoch))
            # The last batch has what is left. It is not filled up: every loss, vote and memory would have to leave the
            # added images out, and no device waits for a smaller batch (tests/test_fake_device.py).
            rows = experience.rows[order[s.epoch_steps * size : (s.epoch_steps + 1) * size]]
            if s.epoch_steps + 1 < per_epoch:
                self.train_loader.upcoming = experience.rows[order[(s.epoch_steps + 1) * size :][:size]]
            if not experience.boundary:
                s.seen = tuple(sorted({*s.seen, *experience.table.labels[rows].tolist()}))
            self._step(Step(s, rows), experience)
            if s.step < s.exp_first + s.exp_steps:  # after the last step comes the experience's own evaluation
                self._evaluate_if_asked(len(rows))
            if s.epoch_steps < per_epoch and self._save_is_due():
                self._check_losses()
                self._count_time()
                self._save()

    def _save_is_due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that another one is asked for."""
        return time.monotonic() - self._saved_at >= self.save_seconds

    def _count_time(self) -> None:
        """Add the time since the last call, or since the epoch began, to the cost of training."""
        now = working_seconds()
        self.cost.seconds_training += now - self._counted_at
        self._counted_at = now

    def _step(self, step: Step, experience: Experience) -> None:
        s, strategy = self.state, self.strategy
        self._raise("before_training_iteration", step)
        rows, replayed = step.rows, 0
        if step.replay is not None:
            rows, replayed = np.concatenate([step.rows, step.replay]), len(step.replay)
        step.batch = self.tools.augmented(rows, replayed, "augmentation", s)
        if experience.unlabelled is not None:
            target = self.tools.target(experience.unlabelled, strategy.batch_size, s, step.batch)
            step.batch = replace(step.batch, target=target)
        self._raise("before_forward", step)
        step.outputs = self.tools.outputs(step.batch)
        self._raise("after_forward", step)
        step.loss = checked.loss(strategy, strategy.loss(step))
        self._raise("before_backward", step)
        s.optimizer.zero_grad()
        step.loss.backward()
        self.tools.world.average_gradients(s.learner.parameters())
        self._raise("after_backward", step)
        if strategy.clip_grad > 0:
            nn.utils.clip_grad_norm_((p for p in s.learner.parameters() if p.requires_grad), strategy.clip_grad)
        self._raise("before_update", step)
        s.optimizer.step()
        self._losses.append(step.loss.detach())
        s.step += 1
        s.epoch_steps += 1
        self.cost.images += len(step.rows)
        self._raise("after_update", step)
        self._raise("after_training_iteration", step)

    def _check_losses(self) -> None:
        """Raises RunFailed for the first loss that is not finite. Losses are read once an epoch, so no step waits."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        wrong = torch.stack(losses).isfinite().logical_not().cpu().nonzero()[:, 0].tolist()
        if wrong:
            number = self.state.step - len(losses) + wrong[0]
            raise checked.not_finite(self.strategy, losses[wrong[0]].item(), number)

    # evaluation

    def _evaluate(self, columns: Sequence[Experience]) -> None:
        """A row of counts, and the metrics so far."""
        s, began = self.state, working_seconds()
        self._check_weights()
        self._raise("before_eval", s)
        row, tasks = self._counts(columns, events=True)
        s.correct.append(row)
        if tasks is not None:
            empty: list[int | None] = [None] * len(row)
            s.task_correct += [empty] * (len(s.correct) - 1 - len(s.task_correct))
            s.task_correct.append(tasks)
        s.metrics = self.measures().values
        self.cost.seconds_evaluation += working_seconds() - began
        self._raise("after_eval", s)

    def _evaluate_if_asked(self, images: int) -> None:
        """Counts in the middle of an experience, when the stream has brought `eval_every` images more.

        `images` are those of the step just done. Training goes on as if nothing had happened.
        """
        every, done = self.eval_every, self.cost.images
        if every is None or done // every == (done - images) // every:
            return
        s, began = self.state, working_seconds()
        with torch.random.fork_rng(devices=[]):
            row, _ = self._counts(self._columns(s.experience.index), events=False)
        s.learner.train()
        s.anytime.append({"images": self.cost.images, "step": s.step, "correct": row})
        took = working_seconds() - began
        self.cost.seconds_evaluation += took
        self.cost.seconds_training -= took  # it happened inside an epoch, whose time counts as training
        self._raise("after_anytime_eval", s)

    def _counts(self, columns: Sequence[Experience], events: bool) -> tuple[list[int | None], list[int | None] | None]:
        """Two counts for each test experience: images with the correct class, and images with the correct task."""
        s = self.state
        s.learner.eval()
        s.total = [len(experience.rows) for experience in self.benchmark.test_stream]
        row: list[int | None] = [None] * len(s.total)
        tasks, detected = list(row), False
        everything = self.strategy.scores_unseen or self.strategy.test_classes == "all" or not (s.trained or s.seen)
        others = tuple(range(s.info.num_classes)) if everything else s.seen
        for group in groups(columns, lambda column: self.rules.competing(column.classes, others)):
            rows, task = group.rows, group.columns[0].task_label
            counts_tasks = task is None and self.rules.counts_tasks and s.info.num_experiences > 1
            predicted = self._predicted(group, rows, task)
            if not predicted.finite:
                names = ", ".join(column.name for column in group.columns)
                raise RunFailed(f"the logits are not finite on {names} {self._after()}; the last checkpoint is kept")
            for column in group.columns:
                if events:
                    self._raise("before_eval_exp", s)
                places = np.searchsorted(rows, column.rows)
                own = predicted.classes[places]
                row[column.index] = int((own == column.labels).sum())
                if predicted.tasks is not None and counts_tasks:
                    tasks[column.index], detected = int((predicted.tasks[places] == column.index).sum()), True
                if self.rules.counts_confusion(column.index):
                    s.confusion = metrics.confusion(column.labels, own, s.info.num_classes)
                if events:
                    self._raise("after_eval_exp", s)
        return row, tasks if detected else None

    def _predicted(self, group: Together, rows: NDArray[np.int64], task: int | None) -> Predicted:
        """The predictions for the (n,) rows of a group."""
        loader = self.test_loaders[group.table]

        def predict(own: NDArray[np.int64]) -> Predicted:
            return predict_rows(self.state.learner, loader, own, group.classes, self.tools.autocast, task)

        return predict_together(self.tools.world, rows, eval_batch(loader.reads), predict)

    def recount(self) -> list[int | None]:
        """The last row of counts once more, from the learner as it is: for the same test experiences, without events.

        Raises RunFailed for logits that are not finite.
        """
        last = self.state.correct[-1]
        row, _ = self._counts([each for each in self.benchmark.test_stream if last[each.index] is not None], False)
        return row

    def _check_weights(self) -> None:
        """Raises RunFailed if a weight is not finite: a step may spoil weights while its own loss was fine."""
        weights = trained(self.state.learner)
        if not weights:
            return
        finite = torch.stack([p.detach().isfinite().all() for p in weights.values()]).cpu().tolist()
        wrong = [name for name, fine in zip(weights, finite, strict=True) if not fine]
        if wrong:
            raise RunFailed(f"{wrong[0]} is not finite {self._after()}; the last checkpoint is kept. Try a smaller lr")
        self.tools.world.require_same(weights | dict(self.state.learner.named_buffers()))

    def _after(self) -> str:
        """Where the run is, for messages."""
        s = self.state
        return f"after experience {s.trained} (step {s.step})" if s.trained else f"at step {s.step}"

    def measures(self) -> metrics.Measures:
        """All measures of the protocol for the run so far."""
        found = self.rules.measures(self.state, self.strategy.scores_unseen)
        accuracy = self.task_accuracy()
        return found if accuracy is None else replace(found, values={**found.values, "task_accuracy": accuracy})

    def task_accuracy(self) -> float | None:
        """The share of the last tested images with a correctly detected experience; None if the method detects none."""
        s = self.state
        if not s.task_correct or len(s.task_correct) < len(s.correct):
            return None
        known = [(count, total) for count, total in zip(s.task_correct[-1], s.total, strict=True) if count is not None]
        return sum(count for count, _ in known) / sum(total for _, total in known) if known else None

    def _raise(self, event: str, s: State | Step) -> None:
        for part in (self.strategy, *self.parts):
            handler = getattr(part, event, None)
            if handler is not None:
                handler(s)


class Rates:
    """Learning rates of an optimizer's groups; each is a fixed factor times the schedule's rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, base: float) -> None:
        """`base`: the rate with which the groups were made."""
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            # stored in the group, so also in checkpoints: a resumed optimizer continues in the middle of its schedule
            group.setdefault("factor", group["lr"] / base if base else 1.0)

    def set(self, lr: float) -> None:
        """Set the schedule's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
