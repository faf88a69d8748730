"""Finished runs, read back."""

import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clsim.errors import RequestError
from clsim.recorders.journal import read_records


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, its figures, and its final learner."""

    directory: Path
    config: dict[str, Any]
    matrix: dict[str, Any]  # correct, total, experiences, classes: see matrix.json
    summary: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every measure of the run; None where it has no meaning, with the reason in `summary["notes"]`."""
        return self.summary["metrics"]  # type: ignore[no-any-return]

    @cached_property
    def events(self) -> dict[str, dict[str, NDArray[Any]]]:
        """What was recorded, as arrays: ``run.events["step"]["loss"]``; lists and objects stand in object arrays."""
        columns: dict[str, dict[str, list[Any]]] = {}
        for record in read_records(self.directory / "events.jsonl"):
            kind = columns.setdefault(record.pop("event"), {})
            for name, value in record.items():
                kind.setdefault(name, []).append(value)
        return {kind: {name: _column(values) for name, values in fields.items()} for kind, fields in columns.items()}

    def predict(self, images: ArrayLike) -> NDArray[np.int64]:
        """(N,3,H,W) uint8 images -> (N,) class ids, by the final learner, among all the classes it learned."""
        return self._predictor(np.asarray(images))  # type: ignore[no-any-return]

    @cached_property
    def _predictor(self) -> Any:
        from clsim.prediction import Predictor

        return Predictor(self.directory)


def _column(values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, list | dict) for value in values):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.array(values)


def load(directory: str | Path) -> Run:
    """The run in `directory`. Raises RequestError if there is none, or it has not finished."""
    directory = Path(directory)
    if not (directory / "summary.json").exists():
        unfinished = (directory / "config.toml").exists()
        raise RequestError(
            f"{directory} holds {'an unfinished run; repeat its command to go on' if unfinished else 'no run'}"
        )
    read = {name: json.loads((directory / f"{name}.json").read_text()) for name in ("matrix", "summary")}
    return Run(directory, tomllib.loads((directory / "config.toml").read_text()), read["matrix"], read["summary"])
