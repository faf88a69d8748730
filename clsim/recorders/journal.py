"""Journal: everything that happens in a run, one JSON object a line in `events.jsonl`.

A resumed run continues from this file: its records are replayed to the other recorders. Every record has `event` and
`time` (seconds since 1970); `experience` counts from 1 (0: before any training), `epoch` from 1 within the experience,
`step` updates since the run began.

Losses and logged values may be tensors on a GPU. They are read all at once when an epoch ends or somebody needs the
file, never in a training step: reading one makes the host wait until the GPU has computed it.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clsim.errors import RequestError, RunFailed, writing
from clsim.events import Part, State, Step
from clsim.rundir import read_records
from clsim.sealed import begun

__all__ = ["Journal", "Listener", "read_records"]

FREQUENT = ("step", "log")  # records that wait until the epoch ends


class Listener(Protocol):
    """Something that receives every record: when it is written, or when a resumed run reads it back."""

    def write(self, record: dict[str, Any]) -> None:
        """Take a record."""

    def close(self) -> None:
        """No more records will come."""


class Journal(Part):
    """Appends records to the run directory's `events.jsonl` and hands each to the listeners."""

    def __init__(
        self, path: Path, listeners: Sequence[Listener] = (), offset: int = 0, digest: str | None = None
    ) -> None:
        """Go on in the file `path` from `offset`, which `offset()` returned; 0: start with an empty file.

        Later records are cut off, and those before are replayed to the listeners. Raises RequestError if the file is
        shorter than `offset`, or if what comes before it has not the `digest` that `digest()` returned there.
        """
        self._path = path
        self._listeners = listeners
        self._kept: list[dict[str, Any]] = []  # records that are not written yet
        self._hash = _begun(path, offset, digest)
        self._file = path.open("ab")
        self._file.truncate(offset)
        self._file.seek(offset)  # for `offset()`, which would otherwise return the length from before
        for record in read_records(path):
            self._tell(record)

    def write(self, event: str, **fields: Any) -> None:
        """Append a record of JSON values and tensors of at most one axis; numbers that are not finite become null.

        Steps and logged values wait until the epoch ends; any other record is written at once, after those.
        """
        self._kept.append({"event": event, **fields, "time": time.time()})
        if event not in FREQUENT:
            self.flush()

    def flush(self) -> None:
        """Write every record that waits, hand it to the listeners, and let the file be read. Waits for the device.

        Raises RunFailed if the file was removed or replaced: whatever would be written now would be lost.
        """
        records, self._kept = self._kept, []
        places = [(record, name) for record in records for name, value in record.items() if isinstance(value, Tensor)]
        for (record, name), value in zip(places, _values([record[name] for record, name in places]), strict=True):
            record[name] = value
        self._require_file()
        for record in map(_finite, records):
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            with writing(self._path, len(line)):
                self._file.write(line)
            self._hash.update(line)
            self._tell(record)
        with writing(self._path):
            self._file.flush()

    def log(self, s: State, name: str, value: Any) -> None:
        """A log record: a number or a list of numbers, from Python, NumPy or a tensor on any device.

        Raises TypeError for anything else.
        """
        self.write("log", name=name, value=_loggable(name, value), step=s.step, experience=_experience(s))

    def end(self, metrics: dict[str, float | None], cost: dict[str, Any], config: dict[str, Any]) -> None:
        """The last record, written by the runner; `config` is the tree of config.toml."""
        self.write("end", metrics=metrics, cost=cost, config=config)

    def offset(self) -> int:
        """Bytes written so far, all of them safely on disk."""
        self.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def digest(self) -> str:
        """A digest of everything before `offset()`."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Write what waits, and close the file and the listeners; a second call does nothing."""
        if self._file.closed:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            for listener in self._listeners:
                listener.close()

    def before_training(self, s: State) -> None:
        """The start record, unless a resumed run has it already."""
        if not self.offset():
            info = s.info
            self.write("start", seed=s.seed, protocol=info.protocol, experiences=info.num_experiences)

    def after_training_iteration(self, s: Step) -> None:
        """A step record."""
        where = {"step": s.step, "experience": s.experience.index + 1, "epoch": s.epoch + 1}
        loss = s.loss.detach().reshape(()).clone()  # a copy: a compiled step may use the same memory for the next loss
        lr = s.optimizer.param_groups[0]["lr"]
        self.write("step", **where, loss=loss, lr=lr.detach().clone() if isinstance(lr, Tensor) else float(lr))

    def after_training_epoch(self, s: State) -> None:
        """Write the epoch's steps."""
        self.flush()

    def after_anytime_eval(self, s: State) -> None:
        """A record of an evaluation inside an experience; `images` were trained on so far."""
        last = s.anytime[-1]
        where = {"experience": _experience(s), "step": last["step"], "images": last["images"]}
        accuracy = _accuracies(last["correct"], s.total)
        self.write("anytime", **where, correct=last["correct"], total=s.total, accuracy=accuracy)

    def after_eval(self, s: State) -> None:
        """An evaluation record: the last row of counts, and the metrics so far.

        `task_correct` counts the images whose experience the method detected; absent where it detects none.
        """
        row = s.correct[-1]
        counts: dict[str, Any] = {"correct": row, "total": s.total, "accuracy": _accuracies(row, s.total)}
        if s.task_correct and len(s.task_correct) == len(s.correct):  # a row of this evaluation
            counts["task_correct"] = s.task_correct[-1]
        self.write("evaluation", experience=s.trained, step=s.step, **counts, metrics=s.metrics)

    def _require_file(self) -> None:
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise RunFailed(f"{self._path} was removed while the run was going on; repeat the command to start again")

    def _tell(self, record: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.write(record)


def _begun(path: Path, offset: int, digest: str | None) -> "hashlib.blake2b":
    """The hash after the first `offset` bytes of a file. Raises RequestError if they are not there or not these."""
    found = begun(path, offset)
    if found is None:
        raise RequestError(f"{path} is missing or shorter than its checkpoint says; start again with --fresh")
    if digest not in (None, found.hexdigest()):
        raise RequestError(f"{path} was changed after its checkpoint was written; start again with --fresh")
    return found


def _accuracies(correct: Sequence[int | None], total: Sequence[int]) -> list[float | None]:
    return [None if count is None else count / size for count, size in zip(correct, total, strict=True)]


def _loggable(name: str, value: Any) -> Any:
    """The value as it is now: a list, a number, or a copy of a tensor, for which the host does not wait."""
    if isinstance(value, Tensor):
        if value.ndim <= 1 and value.numel() and not value.is_complex():
            return value.detach().clone()  # a copy: a learner's buffer changes before the epoch ends
        raise TypeError(f"log({name!r}, ...) takes a number or a list of numbers, not a {tuple(value.shape)} tensor")
    array = np.asarray(value)
    if array.ndim > 1 or array.size == 0 or array.dtype.kind not in "biuf":
        raise TypeError(f"log({name!r}, ...) takes a number or a list of numbers, not {value!r}")
    return array.tolist()


def _values(tensors: Sequence[Tensor]) -> list[Any]:
    """Each (n,) tensor as a list, and each scalar as a number: one read for all of the same device and type."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    found: dict[int, Any] = {}
    for indices in groups.values():
        numbers = torch.cat([tensors[index].reshape(-1) for index in indices]).tolist()
        start = 0
        for index in indices:
            end = start + tensors[index].numel()
            found[index] = numbers[start:end] if tensors[index].ndim else numbers[start]
            start = end
    return [found[index] for index in range(len(tensors))]


def _experience(s: State) -> int:
    """The experience being learned, counted from 1; 0 before the first."""
    return s.trained if s.current is None else s.current.index + 1


def _finite(value: Any) -> Any:
    """The tree with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
