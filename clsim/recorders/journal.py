"""Journal: everything that happens in a run, one JSON object a line in `events.jsonl`.

The file is the one record that a run goes on from: other recorders listen to it, and on resuming are told again what
is kept of it. Every record has `event` and `time` (seconds since 1970); `experience` counts from 1 (0: before any
training), `epoch` from 1 within the experience, `step` updates since the run began.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clsim.errors import RequestError
from clsim.events import Part, State


class Listener(Protocol):
    """Something that is told every record: as it is written, or on resuming as it is read back."""

    def write(self, record: dict[str, Any]) -> None:
        """Take a record."""

    def close(self) -> None:
        """No more records will come."""


class Journal(Part):
    """Appends records to the run directory's `events.jsonl` and hands each to the listeners."""

    def __init__(self, path: Path, listeners: Sequence[Listener] = (), offset: int = 0) -> None:
        """Go on in the file `path` from `offset`, which `offset()` returned; 0: start anew.

        What was written later is cut off, and the listeners are told the records before. Raises RequestError if the
        file is shorter than `offset`.
        """
        self._listeners = listeners
        if offset > 0 and (not path.exists() or path.stat().st_size < offset):
            raise RequestError(f"{path} is missing or shorter than its checkpoint says; start anew with --fresh")
        self._file = path.open("ab", buffering=1 << 20)  # steps stay in this buffer until the end of the epoch
        self._file.truncate(offset)
        self._file.seek(offset)  # for `offset()`, which would else tell the length from before
        for record in read_records(path):
            self._tell(record)

    def write(self, event: str, **fields: Any) -> None:
        """Append a record: JSON values, in which numbers that are not finite become null."""
        record = _finite({"event": event, **fields, "time": time.time()})
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        if event != "step":
            self._file.flush()
        self._tell(record)

    def log(self, s: State, name: str, value: Any) -> None:
        """A log record: a number or a list of numbers, be it from Python, NumPy or a tensor in main memory."""
        array = np.asarray(value)
        if array.ndim > 1 or array.size == 0 or array.dtype.kind not in "biuf":
            raise TypeError(f"log({name!r}, ...) takes a number or a list of numbers, not {value!r}")
        self.write("log", name=name, value=array.tolist(), step=s.step, experience=_experience(s))

    def end(self, metrics: dict[str, float | None], cost: dict[str, Any], config: dict[str, Any]) -> None:
        """The last record, written by the runner; `config` is the tree of config.toml."""
        self.write("end", metrics=metrics, cost=cost, config=config)

    def offset(self) -> int:
        """Bytes written so far, all of them safely on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file and the listeners."""
        self._file.close()
        for listener in self._listeners:
            listener.close()

    def before_training(self, s: State) -> None:
        """The start record, unless it is there from before."""
        if not self.offset():
            info = s.info
            self.write("start", seed=s.seed, protocol=info.protocol, experiences=info.num_experiences)

    def after_training_iteration(self, s: State) -> None:
        """A step record."""
        assert s.loss is not None and s.optimizer is not None
        lr = s.optimizer.param_groups[0]["lr"]
        where = {"step": s.step, "experience": s.experience.index + 1, "epoch": s.epoch + 1}
        self.write("step", **where, loss=s.loss.item(), lr=float(lr))

    def after_training_epoch(self, s: State) -> None:
        """Let the epoch's steps be seen."""
        self._file.flush()

    def after_eval(self, s: State) -> None:
        """An evaluation record: the last row of counts and the metrics so far."""
        row = s.correct[-1]
        accuracy = [None if count is None else count / size for count, size in zip(row, s.total, strict=True)]
        where = {"experience": s.trained, "step": s.step}
        self.write("evaluation", **where, correct=row, total=s.total, accuracy=accuracy, metrics=s.metrics)

    def _tell(self, record: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.write(record)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order; a last line that was never finished is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _experience(s: State) -> int:
    """The experience being learned, counted from 1."""
    return s.trained if s.current is None else s.current.index + 1


def _finite(value: Any) -> Any:
    """The tree with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
