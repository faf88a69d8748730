"""`clsim runs`: which runs a folder holds, in which state they are, and how far they have come."""

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clsim import compare, plugins, rundir
from clsim.errors import RequestError
from clsim.listing import columns
from clsim.results import load, settings_of

TAIL = 1 << 16  # bytes at the end of a journal in which its last step is looked for
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Found:
    """A run directory as it is now; what is not known is None.

    `accuracy` is a fraction: the run's `metric`, which is average_accuracy, or what `clsim compare` sorts by where the
    protocol has none. `age_seconds` counts from the last change of the journal, or of the summary of a finished run.
    """

    scenario: str
    strategy: str
    backbone: str
    seed: int | None
    state: str  # finished, running, interrupted or broken
    age_seconds: float | None
    experience: int | None  # that being learned, or learned last, from 1; 0 before the first
    experiences: int | None  # of the stream
    step: int | None
    metric: str | None
    accuracy: float | None
    directory: str
    problem: str | None  # why it is broken


def report(paths: Sequence[Path], style: str = "table") -> str:
    """The runs in and below `paths`, sorted, as text (`table`), CSV or JSON. Raises RequestError if there is none."""
    found = sorted((inspect(path) for path in rundir.below(paths)), key=_order)
    rows = [asdict(each) for each in found]
    if style == "json":
        return json.dumps(rows, indent=1)
    if style == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        return text.getvalue().rstrip("\n")
    return _table(found)


def inspect(directory: Path) -> Found:
    """The state of one run directory, without changing anything in it.

    The result files of a finished run are compared with their checksums; a checkpoint is not read (`clsim verify`).
    """
    if (directory / rundir.SUMMARY).exists():
        try:
            run = load(directory)
        except RequestError as error:
            if not rundir.in_use(directory):  # else --fresh is just removing its files
                return _unfinished(directory, "broken", str(error))
        else:
            metric = compare.Group("", "", (run,)).measures[0]
            names = {name: run.summary[name] for name in ("scenario", "strategy", "backbone", "seed")}
            return Found(
                **names,
                state="finished",
                **_where(directory, rundir.SUMMARY),
                metric=metric,
                accuracy=run.metrics.get(metric),
                directory=str(directory),
                problem=None,
            )
    return _unfinished(directory, "running" if rundir.in_use(directory) else "interrupted")


def _unfinished(directory: Path, state: str, problem: str | None = None) -> Found:
    """A run without a summary, or with one that cannot be read: what its settings and its journal say."""
    names: dict[str, Any] = {}
    try:
        names = _names(directory, settings_of((directory / rundir.CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if state == "interrupted":
            state = "broken"
        problem = problem or f"{directory / rundir.CONFIG} is missing or broken: {error!r}; {rundir.WAY_OUT}"
    return Found(
        **({"scenario": "?", "strategy": "?", "backbone": "?", "seed": None} | names),
        state=state,
        **_where(directory, rundir.EVENTS),
        metric=None,
        accuracy=None,
        directory=str(directory),
        problem=problem if state == "broken" else None,
    )


def _names(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The names that the run's summary will have."""
    scenario = plugins.short_name(str(settings["scenario"]["name"]))
    above = directory.resolve().parts[-3:-2]  # with the variant: office31.amazon-dslr
    return {
        "scenario": above[0] if above and above[0].partition(".")[0] == scenario else scenario,
        "strategy": plugins.short_name(str(settings["strategy"]["name"])),
        "backbone": str(settings["backbone"]),
        "seed": int(settings["seed"]),
    }


def _where(directory: Path, newest: str) -> dict[str, Any]:
    """How old the run is, and its place in the stream, as far as the files tell."""
    found: dict[str, Any] = dict.fromkeys(("age_seconds", "experience", "experiences", "step"))
    for name in (newest, rundir.CONFIG):  # a run that has just begun has no journal yet
        try:
            found["age_seconds"] = max(0.0, round(time.time() - (directory / name).stat().st_mtime, 1))
            break
        except OSError:
            continue
    try:
        with (directory / rundir.EVENTS).open("rb") as file:
            found["experiences"] = _record(file.readline(TAIL)).get("experiences")
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return found
    for record in map(_record, reversed(lines)):
        if "step" in record and "experience" in record:
            return found | {name: record[name] for name in ("experience", "step")}
    return found


def _record(line: bytes) -> dict[str, Any]:
    """The record in a line of a journal; empty if the line is cut off or broken."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _order(each: Found) -> tuple[Any, ...]:
    return each.scenario, each.strategy, each.backbone, -1 if each.seed is None else each.seed, each.directory


def _table(found: Sequence[Found]) -> str:
    """Aligned columns, a line with the number of runs in each state, and why the broken ones are broken."""
    rows = [("scenario", "strategy", "backbone", "seed", "state", "age", "experience", "step", "accuracy %")]
    for each in found:
        rows.append(
            (
                each.scenario,
                each.strategy,
                each.backbone,
                _text(each.seed),
                each.state,
                "-" if each.age_seconds is None else age(each.age_seconds),
                "-" if each.experience is None else f"{each.experience} of {_text(each.experiences)}",
                "-" if each.step is None else f"{each.step:,}",
                "-" if each.accuracy is None else f"{100 * each.accuracy:.1f}",
            )
        )
    states = [each.state for each in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states), key=states.index))
    problems = [f"broken: {each.problem}" for each in found if each.problem is not None]
    return "\n".join([columns(rows), "", f"{len(found)} runs: {counts}", *problems])


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def age(seconds: float) -> str:
    """A time in whole units, rounded down: ``3 min``, ``5 d``."""
    unit, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    return f"{int(seconds // size)} {unit}"
