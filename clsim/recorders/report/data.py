"""What a report shows of finished runs: streams, and for each stream one row for the runs that differ only in seed."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim import checksums, compare, rundir
from clsim.errors import RequestError
from clsim.metrics import accuracy_matrix, mean_and_interval
from clsim.recorders.report import svg
from clsim.results import Run

PROMPT_USAGE = "prompt_usage"  # a list that methods with a pool of prompts log after each experience


Place = tuple[float, float, float | None]  # x, a mean in %, and half the width of its interval


@dataclass(frozen=True)
class Row:
    """Runs of one method that differ only in their seed."""

    name: str
    label: str  # its name in pictures
    series: int  # its colour
    group: compare.Group

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs, sorted by seed."""
        return self.group.runs

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [int(run.summary["seed"]) for run in self.runs]

    @property
    def command(self) -> str:
        """The command that repeats the runs, or shows their results while nothing has changed."""
        seeds = ",".join(map(str, self.seeds))
        return f"clsim run --config {shlex.quote(path_text(self.runs[0].directory / rundir.CONFIG))} --seed {seeds}"

    @property
    def config(self) -> str:
        """Every setting, as the file of the first run has it."""
        return (self.runs[0].directory / rundir.CONFIG).read_text(encoding="utf-8", errors="replace")

    @property
    def remarks(self) -> list[str]:
        """The caveats of the strategy, and the notes given with --note, each once."""
        found = [text for run in self.runs for name, text in run.summary.get("notes", {}).items() if "caveat" in name]
        notes = [run.config.get("note") for run in self.runs]
        return list(dict.fromkeys([*found, *(f"note: {note}" for note in notes if note not in (None, "none"))]))

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """env.json of every run; empty where a run of an earlier version has none. Raises RequestError if broken."""
        return [_environment(run.directory) for run in self.runs]

    @cached_property
    def curve(self) -> list[Place]:
        """Average accuracy after experience 1, 2, ...; empty where some that were learned were not tested."""
        return _places([_averages(run.matrix) for run in self.runs])

    @cached_property
    def anytime(self) -> list[Place]:
        """Accuracy on all tested images after so many training images; empty if not recorded at the same numbers."""
        return _places([_anytime(run.matrix) for run in self.runs])

    @cached_property
    def matrix(self) -> list[list[float | None]]:
        """(rows, T) accuracies in %, mean over seeds; empty if the runs have matrices of several shapes."""
        return _mean_matrix([run.matrix["correct"] for run in self.runs], [run.matrix["total"] for run in self.runs])

    @cached_property
    def task_matrix(self) -> list[list[float | None]]:
        """(rows, T) images whose experience was detected, in %, mean over seeds; empty if not recorded."""
        if not all(run.matrix.get("task_correct") for run in self.runs):
            return []
        found = [run.matrix["task_correct"] for run in self.runs]
        return _mean_matrix(found, [run.matrix["total"] for run in self.runs])

    @property
    def has_baseline(self) -> bool:
        """Whether the first row of `matrix` is from before training."""
        return bool(self.runs[0].matrix.get("before"))

    @cached_property
    def confusion(self) -> NDArray[np.float64] | None:
        """(K,K) predictions of each true class in %, summed over seeds; None if not recorded. NaN: no image."""
        if not all("confusion" in run.matrix for run in self.runs):
            return None
        counts = np.sum([run.matrix["confusion"]["target"] for run in self.runs], axis=0, dtype=np.float64)
        images = counts.sum(axis=1, keepdims=True)
        return np.asarray(100 * counts / np.where(images, images, np.nan))

    @cached_property
    def prompt_usage(self) -> list[list[float]]:
        """(T, prompts) share of each prompt in the selections of an experience, in %; of the first run.

        A prompt with the same number is another one in another run. Empty if not recorded.
        """
        directory = self.runs[0].directory
        if not (directory / rundir.EVENTS).exists():
            return []
        checksums.require(directory, rundir.EVENTS)
        records = rundir.read_records(directory / rundir.EVENTS, "log")
        found = [each["value"] for each in records if each.get("name") == PROMPT_USAGE]
        if not all(isinstance(each, list) and sum(each) for each in found):
            return []
        return [[100 * count / sum(each) for count in each] for each in found]


@dataclass(frozen=True)
class Stream:
    """Rows on the same stream, the best first."""

    name: str
    rows: list[Row]

    @property
    def numbered(self) -> bool:
        """Whether pictures show numbers in place of names, because the names are many or long."""
        return self.rows[0].label != self.rows[0].name

    @property
    def measures(self) -> list[str]:
        """The metrics, the most important first."""
        names = compare.measures_of([row.group for row in self.rows])
        return [name for name in names if any(row.group.values(name) for row in self.rows)]

    @property
    def experiences(self) -> list[str]:
        """The names of the tested experiences; empty if they depend on the seed."""
        first, *others = [run.matrix["experiences"] for row in self.rows for run in row.runs]
        return [] if any(names != first for names in others) else list(map(str, first))


@dataclass(frozen=True)
class Unfinished:
    """A run that has not finished."""

    directory: str
    progress: str


@dataclass(frozen=True)
class Report:
    """Everything that a page shows."""

    streams: list[Stream]
    unfinished: list[Unfinished]


def collect(paths: Sequence[Path]) -> Report:
    """The runs in and below the paths. Raises RequestError if there are none, or if a finished run is broken."""
    finished, unfinished = compare.find(paths)
    groups = compare.grouped(finished)
    streams = []
    for name in dict.fromkeys(each.scenario for each in groups):
        own = [each for each in groups if each.scenario == name]
        several = len({each.runs[0].summary["backbone"] for each in own}) > 1
        names = [f"{each.strategy} ({each.runs[0].summary['backbone']})" if several else each.strategy for each in own]
        short = len(names) <= svg.COLOURS and max(map(len, names)) <= svg.LONGEST
        labels = names if short else list(map(str, range(1, len(names) + 1)))
        words = zip(names, labels, strict=True)
        rows = [Row(*each, number, own[number]) for number, each in enumerate(words)]
        streams.append(Stream(name, rows))
    return Report(streams, [Unfinished(path_text(path), _progress(path)) for path in unfinished])


def path_text(path: Path) -> str:
    r"""A path for people; bytes that are not UTF-8 as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _environment(directory: Path) -> dict[str, Any]:
    """A run's provenance; empty where there is none."""
    content = checksums.contents(directory, rundir.ENVIRONMENT).get(rundir.ENVIRONMENT)
    if content is None:
        return {}
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise RequestError(f"{directory / rundir.ENVIRONMENT} is broken: {error!r}; {rundir.WAY_OUT}") from error


def _progress(directory: Path) -> str:
    """How far an unfinished run is."""
    try:
        records = list(rundir.read_records(directory / rundir.EVENTS, "start", "evaluation"))
    except RequestError:
        return "nothing is recorded yet"
    total = next((each.get("experiences") for each in records if each["event"] == "start"), None)
    tested = [each for each in records if each["event"] == "evaluation" and each.get("experience")]
    if not tested or total is None:
        return "no experience is finished yet"
    average = tested[-1].get("metrics", {}).get("average_accuracy")
    text = "" if average is None else f", average accuracy {100 * average:.1f} %"
    return f"{tested[-1]['experience']} of {total} experiences are finished{text}"


def _averages(matrix: Mapping[str, Any]) -> dict[float, float]:
    """Number of experiences learned -> the mean accuracy over these; empty where some were not tested."""
    rows = accuracy_matrix(matrix["correct"], matrix["total"])[1 if matrix.get("before") else 0 :]
    found: dict[float, float] = {number: float(np.mean(row[:number])) for number, row in enumerate(rows, 1)}
    return {} if np.isnan(list(found.values())).any() else found


def _anytime(matrix: Mapping[str, Any]) -> dict[float, float]:
    """Number of training images -> the accuracy on all images tested then."""
    found: dict[float, float] = {}
    for each in matrix.get("anytime") or []:
        tested = [pair for pair in zip(each["correct"], matrix["total"], strict=True) if pair[0] is not None]
        if tested:
            found[each["images"]] = sum(count for count, _ in tested) / sum(size for _, size in tested)
    return found


def _places(found: Sequence[Mapping[float, float]]) -> list[Place]:
    """The mean over runs at each x, in %; empty if the runs have other x."""
    if any(each.keys() != found[0].keys() for each in found):
        return []
    return [(x, *_in_percent([each[x] for each in found])) for x in found[0]]


def _mean_matrix(counts: Sequence[Any], totals: Sequence[Any]) -> list[list[float | None]]:
    """The mean of accuracy matrices in %; None where a cell was not evaluated; empty for several shapes."""
    if len({(len(each), len(total)) for each, total in zip(counts, totals, strict=True)}) > 1:
        return []
    mean = np.mean([accuracy_matrix(each, total) for each, total in zip(counts, totals, strict=True)], axis=0)
    return [[None if np.isnan(value) else float(100 * value) for value in row] for row in mean]


def _in_percent(values: Sequence[float]) -> tuple[float, float | None]:
    mean, half = mean_and_interval(values)
    return 100 * mean, None if half is None else 100 * half
