"""Evaluation: images without labels -> predictions; each prediction depends only on its own image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clsim.data.batches import Batch, Loader
from clsim.data.streams import Experience
from clsim.outputs import as_outputs
from clsim.parallel import World
from clsim.tools import eval_batch


@dataclass(frozen=True)
class Predicted:
    """A learner's predictions for n images."""

    classes: NDArray[np.int64]  # (n,)
    finite: bool  # whether no logit among the allowed classes is NaN or infinite upwards
    tasks: NDArray[np.int64] | None  # (n,) detected experiences, if the method detects them


@torch.no_grad()
def predict(
    learner: nn.Module,
    batches: Iterator[tuple[int, Batch]],
    allowed: Sequence[int],
    autocast: Callable[[], AbstractContextManager[object]],
    device: torch.device,
    task: int | None = None,
) -> Predicted:
    """The predicted class of each image, among `allowed`; the batches have `task` if the protocol reveals it.

    In each (count, batch) the first `count` images are real; the others only fill the batch.
    """
    classes = torch.tensor(allowed, device=device)
    predicted, tasks, finite = [], [], torch.ones((), dtype=torch.bool, device=device)
    for count, batch in batches:
        with autocast():
            outputs = as_outputs(learner(batch.with_task(task)))
        logits = outputs.logits[:count].float()[:, classes]
        predicted.append(classes[logits.argmax(dim=1)])
        finite = finite & (logits < torch.inf).all()  # false for NaN, too
        if outputs.task is not None:
            tasks.append(outputs.task[:count])
    found = torch.cat(tasks).cpu().numpy() if tasks else None
    return Predicted(torch.cat(predicted).cpu().numpy(), bool(finite), found)


def predict_rows(
    learner: nn.Module,
    loader: Loader,
    rows: NDArray[np.int64],
    allowed: Sequence[int],
    autocast: Callable[[], AbstractContextManager[object]],
    task: int | None = None,
) -> Predicted:
    """`predict` for (n,) rows of the loader's table."""
    batches = loader.unlabelled(rows, eval_batch(loader.reads))
    return predict(learner, batches, allowed, autocast, loader.device, task)


def predict_together(
    world: World, rows: NDArray[np.int64], size: int, predict: Callable[[NDArray[np.int64]], Predicted]
) -> Predicted:
    """What `predict` finds for (n,) rows, of which each process predicts its part, in whole batches of `size`."""
    own = world.portion(rows, size)
    found = [each for each in world.everyone(predict(own) if len(own) else None) if each is not None]
    tasks = [each.tasks for each in found if each.tasks is not None]
    return Predicted(
        np.concatenate([each.classes for each in found]),
        all(each.finite for each in found),
        np.concatenate(tasks) if tasks else None,
    )


@dataclass(frozen=True)
class Together:
    """Test experiences whose images can share batches: the same table, classes and task."""

    columns: tuple[Experience, ...]
    classes: tuple[int, ...]

    @property
    def table(self) -> str:
        """The table's fingerprint."""
        return self.columns[0].table.fingerprint

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of all experiences of the group, ascending."""
        return np.sort(np.concatenate([column.rows for column in self.columns]))


def groups(columns: Sequence[Experience], competing: Callable[[Experience], tuple[int, ...]]) -> list[Together]:
    """The test experiences in groups, in the order in which each group first appears."""
    found: dict[tuple[object, ...], list[Experience]] = {}
    for column in columns:
        key = column.table.fingerprint, competing(column), column.task_label
        found.setdefault(key, []).append(column)
    return [Together(tuple(members), competing(members[0])) for members in found.values()]
