"""Reads run directories of finished runs. It imports torch only when a learner is needed."""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clsim import checksums, provenance, rundir
from clsim.errors import RequestError
from clsim.options import NOT_COMPARED

TABLE = re.compile(r"\[(\w+)\]", re.ASCII)  # the header of a plain table in TOML

# keys that every reader of these files needs
NEEDED = {
    rundir.CONFIG: ("scenario", "strategy"),
    rundir.MATRIX: ("correct", "total", "experiences"),
    rundir.SUMMARY: ("scenario", "strategy", "backbone", "seed", "config_hash", "metrics", "cost"),
}


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, its results, and its final learner."""

    directory: Path
    config: dict[str, Any] = field(repr=False)  # config.toml
    matrix: dict[str, Any] = field(repr=False)  # correct, total, experiences, classes: see matrix.json
    summary: dict[str, Any] = field(repr=False)  # summary.json

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics of the run; an undefined one is None, with the reason in `summary["notes"]`."""
        return self.summary["metrics"]  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        """The run as notebooks show it."""
        from clsim import notebooks  # late: it imports this module

        return notebooks.run_html(self)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Metrics and costs by name; `trainable_percent` is trainable parameters in % of the backbone's.

        A run of an earlier version may lack some costs.
        """
        cost = dict(self.summary["cost"])
        if cost.get("backbone_parameters") and "trainable_parameters" in cost:
            cost["trainable_percent"] = 100 * cost["trainable_parameters"] / cost["backbone_parameters"]
        return {**cost, **self.metrics, **{name: self.summary.get(name) for name in ("seconds", "bank_seconds")}}

    @cached_property
    def scenario_settings(self) -> dict[str, Any]:
        """The fields of the scenario."""
        return {key: value for key, value in self.config["scenario"].items() if key != "name"}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The fields of the strategy, and the options that a result may depend on."""
        fields = {key: value for key, value in self.config["strategy"].items() if key != "name"}
        options = {key: value for key, value in self.config.items() if key not in NOT_COMPARED}
        if "device" in options:
            options["device"] = options["device"].partition(":")[0]  # cuda:0 and cuda:1 are the same, as in the hash
        return fields | options

    @cached_property
    def code_note(self) -> str | None:
        """A sentence if this run was made by another version of clsim's code; None otherwise."""
        made, now = self.summary.get("code"), provenance.code_digest()
        if made == now:
            return None
        what = "an earlier version of clsim" if made is None else f"other code of clsim ({made}, now {now})"
        return f"made by {what}: repeat with --fresh to run it again"

    @cached_property
    def events(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The recorded events as arrays: ``run.events["step"]["loss"]``.

        Lists and objects are elements of object arrays. If a record lacks a field that other records of its kind have,
        the element is None. Raises RequestError with the file's name if the file is missing or broken.
        """
        checksums.require(self.directory, rundir.EVENTS)
        kinds: dict[str, list[dict[str, Any]]] = {}
        for record in rundir.read_records(self.directory / rundir.EVENTS):
            kinds.setdefault(record.pop("event"), []).append(record)
        found = {}
        for kind, records in kinds.items():
            names = dict.fromkeys(name for record in records for name in record)
            found[kind] = {name: _column([record.get(name) for record in records]) for name in names}
        return found

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names: class id c, and column c of `scores`, is `class_names[c]`. Raises RequestError."""
        path = self.directory / rundir.STATE
        checksums.require(self.directory, rundir.STATE)
        try:
            return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))["tree"]["info"]["class_names"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is missing or broken: {error!r}; {rundir.WAY_OUT}") from error

    def predict(
        self, images: Any, task: int | ArrayLike | None = None, device: str = "cpu", batch_size: int = 64
    ) -> NDArray[np.int64]:
        """Images -> (N,) class ids, by the final learner, among all learned classes.

        `images`: uint8 or float in [0, 1], (N,3,H,W) or (N,H,W,3), or one image with 3 axes or (grey) 2; arrays or
        tensors on any device; Pillow images or paths; or a list of single images of any kind. Each is prepared by
        itself, as the run's own table stores its images. Raises RequestError for anything else.
        `task`: index (from 0) of the experience; one number for all images, or (N,) numbers. Images are then classified
        among its classes. Raises RequestError if the protocol does not reveal the task.
        `batch_size`: images that are prepared, and kept in memory, at once. It changes no prediction: the learner
        always gets batches of 64 images, filled up if there are fewer, as in the run's evaluation.
        """
        return np.asarray(self._predictor_on(device).predict(images, task, batch_size), dtype=np.int64)

    def scores(
        self, images: Any, task: int | ArrayLike | None = None, device: str = "cpu", batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Images -> (N, num_classes) logits for all classes, learned or not; arguments as in `predict`.

        Column c belongs to `class_names[c]`.
        """
        return np.asarray(self._predictor_on(device).scores(images, task, batch_size), dtype=np.float32)

    @cached_property
    def _predictor(self) -> Any:
        from clsim.prediction import Predictor  # late: it imports torch

        return Predictor(self.directory)

    def _predictor_on(self, device: str) -> Any:
        """The final learner on a device, loaded once."""
        if device == "cpu":
            return self._predictor
        if device not in self._predictors:
            from clsim.prediction import Predictor

            self._predictors[device] = Predictor(self.directory, device)
        return self._predictors[device]

    @cached_property
    def _predictors(self) -> dict[str, Any]:
        return {}


def _column(values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, list | dict) for value in values):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.array(values)


def load(directory: str | Path) -> Run:
    """The run in `directory`.

    Raises RequestError if there is none, if it has not finished, or if one of its files is missing, broken, or not as
    the run left it.
    """
    directory = Path(directory)
    if not (directory / rundir.SUMMARY).exists():
        unfinished = (directory / rundir.CONFIG).exists()
        raise RequestError(
            f"{directory} holds {'an unfinished run; repeat its command to continue it' if unfinished else 'no run'}"
        )
    stored = checksums.contents(directory, *NEEDED)
    parsers: dict[str, Callable[[str], dict[str, Any]]]
    parsers = {rundir.CONFIG: settings_of, rundir.MATRIX: json.loads, rundir.SUMMARY: json.loads}
    found = Run(directory, *(_parsed(directory / name, stored.get(name), parse) for name, parse in parsers.items()))
    if checksums.MARK in found.summary and not (directory / rundir.CHECKSUMS).exists():
        raise RequestError(f"{directory} is broken: {rundir.CHECKSUMS} is missing; {rundir.WAY_OUT}")
    return found


def _parsed(path: Path, content: bytes | None, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file of a finished run, checked for its NEEDED keys. Raises RequestError."""
    try:
        tree = parse((path.read_bytes() if content is None else content).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is missing or broken: {error!r}; {rundir.WAY_OUT}") from error
    absent = [key for key in NEEDED[path.name] if key not in tree] if isinstance(tree, dict) else NEEDED[path.name]
    if absent:
        raise RequestError(f"{path} was not written by a run: it has no {', '.join(absent)}; {rundir.WAY_OUT}")
    return tree


def settings_of(text: str) -> dict[str, Any]:
    """``tomllib.loads`` for the many files of settings that have nearly the same lines: each line is parsed once.

    A text that is not a list of plain lines below [tables], or that is wrong, is parsed by tomllib as a whole.
    """
    tree: dict[str, Any] = {}
    table = tree
    for line in text.splitlines():
        header = TABLE.fullmatch(line)
        if header is not None and header[1] not in tree:
            table = tree[header[1]] = {}
        elif header is not None or not _add(line, table):
            return tomllib.loads(text)
    return tree


def _add(line: str, table: dict[str, Any]) -> bool:
    """Put the value of a line into the table; false if the line is more than ``key = value`` with a new key."""
    pairs = _line(line)
    if pairs is None or any(key in table for key, _ in pairs):
        return False
    table.update((key, list(value) if isinstance(value, list) else value) for key, value in pairs)
    return True


@lru_cache(maxsize=10_000)
def _line(line: str) -> list[tuple[str, Any]] | None:
    """The pairs of a line of TOML that stands for itself: one or none; None for any other line."""
    try:
        found = list(tomllib.loads(line).items())
    except ValueError:
        return None
    nested = any(isinstance(each, dict | list) for _, value in found for each in _items(value))
    return None if nested else found


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []
