"""`clsim compare`: a table of finished runs; runs that differ only in their seed share a row."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from clsim import plugins, rundir
from clsim.errors import RequestError
from clsim.listing import size_text
from clsim.metrics import SINCE_LEARNED, binomial_interval, mean_and_interval
from clsim.results import Run, load

METRICS = (
    "average_accuracy",
    "forgetting",
    "average_incremental_accuracy",
    "backward_transfer",
    "learning_accuracy",
)
ADAPTATION = ("target_accuracy", "target_class_mean", "target_test_accuracy", "source_accuracy", "adaptation_gain")
ONLINE = ("a_last", "a_auc")
BASE_TO_NEW = ("base_accuracy", "new_accuracy", "harmonic_mean")
DETECTION = "task_accuracy"  # only of methods that detect the task of an image
BASELINE = "source_only"  # adaptation_gain is relative to it where there is no zero-shot classifier
COSTS = (
    "trainable_parameters",
    "trainable_percent",
    "stored_bytes_per_experience",
    "memory_bytes",
    "seconds",
    "bank_seconds",
    "images_per_second",
    "peak_memory_bytes",
)
NAMED = 5  # most run directories that a note lists
BY_TEST_SET = "binomial ± by test set %"  # heading of what more seeds do not make smaller


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, with names that no other group has."""

    scenario: str
    strategy: str
    runs: tuple[Run, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """The metrics for its kind of scenario, the most important first."""
        figures = self.runs[0].figures
        return next((names for names in (ADAPTATION, BASE_TO_NEW, ONLINE) if names[0] in figures), METRICS)

    def by_seed(self, name: str) -> dict[int, float]:
        """Seed -> a metric or a cost of its run; without the runs for which it is undefined."""
        same = "forgetting" if name == SINCE_LEARNED else name  # runs without it have the same value under that name
        found = {int(run.summary["seed"]): run.figures.get(name, run.figures.get(same)) for run in self.runs}
        return {seed: float(value) for seed, value in found.items() if isinstance(value, int | float)}

    def values(self, name: str) -> list[float]:
        """A metric or a cost of every run; empty where it is undefined."""
        return list(self.by_seed(name).values())

    @property
    def by_test_set(self) -> float | None:
        """Half the width of the binomial 95 % interval of the first of `measures`, the mean over runs."""
        whole = self.measures in (METRICS, ONLINE)  # else the first column alone: target, or base classes
        counts = [(run.matrix["correct"][-1], run.matrix["total"]) for run in self.runs if run.matrix["correct"]]
        found = [binomial_interval(*(pair if whole else (pair[0][:1], pair[1][:1]))) for pair in counts]
        halves = [half for half in found if half is not None]
        return sum(halves) / len(halves) if halves else None

    def mean(self, name: str) -> float | None:
        """The mean of a metric or a cost over the runs."""
        values = self.values(name)
        return sum(values) / len(values) if values else None


def report(paths: Sequence[Path], style: str = "table", long: bool = False) -> str:
    """The runs in and below `paths` as text (`table`), Markdown (`md`), CSV (`csv`) or JSON (`json`). Accuracies in %.

    CSV and JSON have every metric; with `long` a row for each run, else the means over seeds. Raises RequestError if
    there is no run, if a file of a run is missing or broken, and for `long` in another style.
    """
    if long and style not in ("csv", "json"):
        raise RequestError("--long is for --format csv and --format json")
    finished, unfinished = find(paths)
    groups = grouped(finished)
    if style in ("csv", "json"):
        rows = run_records(groups) if long else records(groups)
        return json.dumps(rows, indent=1) if style == "json" else _csv(rows)
    blocks = [_markdown(groups)] if style == "md" and groups else []
    if style == "table":
        for scenario in dict.fromkeys(each.scenario for each in groups):
            blocks.append(f"{scenario}\n{_table([each for each in groups if each.scenario == scenario])}")
    blocks += _code_notes(finished)
    if unfinished:
        blocks.append(f"not finished: {', '.join(map(str, unfinished))}")
    return "\n\n".join(blocks)


def _code_notes(runs: Sequence[Run]) -> list[str]:
    """A line that lists the runs made by another version of clsim's code, if there are any."""
    others = [str(run.directory) for run in runs if run.code_note is not None]
    if not others:
        return []
    rest = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    names = ", ".join(others[:NAMED])
    return [f"made by other code of clsim (repeat with --fresh to run them again): {names}{rest}"]


def find(paths: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs in and below the paths, each once, and the directories of unfinished ones.

    Raises RequestError for a path without runs, and if runs are broken, with the names of the first.
    """
    directories = rundir.below(paths)
    runs, broken, unfinished = [], [], []
    for path in directories:
        if not (path / rundir.SUMMARY).exists():
            unfinished.append(path)
            continue
        try:
            runs.append(load(path))
        except RequestError as error:
            broken.append(str(error))
    if broken:  # no table without them: a mean that has lost a seed looks like any other
        more = f"; {len(broken) - NAMED} more are broken" if len(broken) > NAMED else ""
        raise RequestError(f"{'; '.join(broken[:NAMED])}{more}")
    return runs, unfinished


def with_gains(runs: Sequence[Run]) -> list[Run]:
    """The runs; one without an adaptation_gain gets it from the BASELINE run of its scenario, backbone and seed."""
    baselines = [run for run in runs if run.summary["strategy"] == BASELINE]
    accuracy = {_source(run): run.figures.get("target_accuracy") for run in baselines}
    found = []
    for run in runs:
        own, base = run.figures.get("target_accuracy"), accuracy.get(_source(run))
        if own is not None and base is not None and run.figures.get("adaptation_gain") is None:
            summary = run.summary | {"metrics": run.summary["metrics"] | {"adaptation_gain": own - base}}
            run = replace(run, summary=summary)
        found.append(run)
    return found


def _source(run: Run) -> str:
    """Equal for runs that are compared with the same BASELINE run: the same scenario, backbone and seed."""
    names = [run.summary[name] for name in ("scenario", "backbone", "seed")]
    return json.dumps([names, run.scenario_settings], sort_keys=True)


def _key(run: Run) -> str:
    """Equal for runs that differ only in their seed."""
    names = [run.summary[name] for name in ("scenario", "strategy", "backbone")]
    return json.dumps([names, run.scenario_settings, run.settings], sort_keys=True)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """`group` of runs with their adaptation gains."""
    return group(with_gains(runs))


def group(runs: Iterable[Run]) -> list[Group]:
    """Groups of runs that differ only in their seed, sorted by scenario, then by average accuracy, best first."""
    sets = _sets(runs)
    firsts = [members[0] for members in sets]
    scenarios: dict[str, _Varying] = {}
    for run in firsts:
        scenarios.setdefault(run.summary["scenario"], _Varying()).add(run.scenario_settings)
    titles = [
        scenarios[run.summary["scenario"]].named(run.summary["scenario"], run.scenario_settings) for run in firsts
    ]
    strategies: dict[tuple[str, str], _Varying] = {}
    for run, title in zip(firsts, titles, strict=True):
        strategies.setdefault((title, run.summary["strategy"]), _Varying()).add(run.settings)
    names = []
    for run, title in zip(firsts, titles, strict=True):
        name = run.summary["strategy"]
        names.append((title, strategies[title, name].named(plugins.short_name(name), run.settings)))
    count = Counter((*name, run.summary["backbone"]) for name, run in zip(names, firsts, strict=True))
    groups = []
    for (title, label), members in zip(names, sets, strict=True):
        unique = count[title, label, members[0].summary["backbone"]] == 1
        text = label if unique else f"{label} #{members[0].summary['config_hash']}"
        groups.append(Group(title, text, tuple(sorted(members, key=lambda run: int(run.summary["seed"])))))
    return sorted(groups, key=lambda each: (each.scenario, -(each.mean(each.measures[0]) or 0.0)))


def _sets(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups of runs with the same `_key`; separate groups if a seed occurs twice.

    Between such runs the data, the weights or a plug-in's code have changed, so their mean has no meaning.
    """
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(_key(run), []).append(run)
    sets: list[list[Run]] = []
    for members in by_key.values():
        repeated = len({run.summary["seed"] for run in members}) < len(members)
        sets += [[run] for run in members] if repeated else [members]
    return sets


class _Varying:
    """The settings in which groups with one name differ.

    Settings that the other groups lack do not count: runs of an earlier version lack the fields added later.
    """

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}  # the first value of each setting
        self.keys: set[str] = set()

    def add(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of a group."""
        self.keys.update(key for key, value in settings.items() if self.first.setdefault(key, value) != value)

    def named(self, name: str, own: Mapping[str, Any]) -> str:
        """The name, followed by ``key=value`` for each setting of a group in which another group differs."""
        texts = [name]
        for key, value in own.items():
            if key in self.keys:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                texts.append(f"{key}={text.lower() if isinstance(value, bool) else text or 'none'}")
        return " ".join(texts)


# tables


def measures_of(groups: Sequence[Group]) -> list[str]:
    """The metrics to show as columns: those of every group's scenario, and DETECTION if a method detects tasks."""
    names = list(dict.fromkeys(name for each in groups for name in each.measures))
    if any(SINCE_LEARNED in run.figures for each in groups for run in each.runs):
        names.insert(names.index("forgetting") + 1, SINCE_LEARNED)
    return [*names, DETECTION] if any(each.values(DETECTION) for each in groups) else names


def cells(each: Group, names: Sequence[str]) -> dict[str, str]:
    """Heading -> text, for people; `names`: the metrics to show."""
    cells = {"strategy": each.strategy, "backbone": each.runs[0].summary["backbone"], "seeds": str(len(each.runs))}
    for name in names:
        cells[f"{name.replace('_', ' ')} %"] = _percent(each.values(name))
    cells[BY_TEST_SET] = "-" if each.by_test_set is None else f"{100 * each.by_test_set:.1f}"
    for heading, name, form in (
        ("trainable parameters", "trainable_parameters", "{:,.0f}"),
        ("% of backbone", "trainable_percent", "{:.3g}"),
        ("stored per experience", "stored_bytes_per_experience", "size"),
        ("memory kept", "memory_bytes", "size"),
        ("seconds", "seconds", "{:,.1f}"),
        ("seconds of bank", "bank_seconds", "{:,.1f}"),
        ("training images/s", "images_per_second", "{:,.0f}"),
        ("peak memory", "peak_memory_bytes", "size"),
    ):
        value = each.mean(name)
        cells[heading] = "-" if value is None else size_text(value) if form == "size" else form.format(value)
    return cells


def _percent(values: Sequence[float]) -> str:
    """``81.2 ± 1.4``: mean and half the width of the 95 % interval, in %."""
    if not values:
        return "-"
    mean, half = mean_and_interval(values)
    return f"{100 * mean:.1f}" if half is None else f"{100 * mean:.1f} ± {100 * half:.1f}"


def _table(groups: Sequence[Group]) -> str:
    """Aligned columns; each word of a heading is on a separate line."""
    rows = [cells(each, measures_of(groups)) for each in groups]
    headings = [heading.split() for heading in rows[0]]
    height = max(map(len, headings))
    lines = [[([""] * (height - len(words)) + words)[i] for words in headings] for i in range(height)]
    lines += [list(row.values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    # names are aligned to the left, figures to the right
    aligned = [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned[:height], rule, *aligned[height:]])


def _markdown(groups: Sequence[Group]) -> str:
    """One table, with the scenario as a column."""
    rows = [{"scenario": each.scenario, **cells(each, measures_of(groups))} for each in groups]
    columns = list(rows[0])
    marks = ["---" if name in ("scenario", "strategy", "backbone") else "---:" for name in columns]
    lines = [columns, marks, *([text.replace("|", "\\|") for text in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# plain numbers


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for each group: means and intervals of every metric in %, means of costs in bytes and seconds.

    `other_code` says whether one of the runs was made by another version of clsim's code.
    """
    rows: list[dict[str, Any]] = []
    for each in groups:
        row = {"scenario": each.scenario, "strategy": each.strategy, "backbone": each.runs[0].summary["backbone"]}
        row["seeds"] = len(each.runs)
        for name in _every_metric(groups):
            values = each.values(name)
            mean, half = mean_and_interval(values) if values else (None, None)
            row[f"{name}_percent"], row[f"{name}_interval"] = _in_percent(mean), _in_percent(half)
        row["test_set_interval"] = _in_percent(each.by_test_set)
        row |= {name: each.mean(name) for name in COSTS}
        rows.append(row | {"other_code": any(run.code_note is not None for run in each.runs)})
    return rows


def run_records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for each run, with the names of its group: every metric in %, costs in bytes and seconds."""
    rows: list[dict[str, Any]] = []
    for each in groups:
        for run in each.runs:
            alone = replace(each, runs=(run,))
            row = {"scenario": each.scenario, "strategy": each.strategy, "backbone": run.summary["backbone"]}
            row |= {"seed": run.summary["seed"], "config_hash": run.summary["config_hash"]}
            row |= {f"{name}_percent": _in_percent(alone.mean(name)) for name in _every_metric(groups)}
            row |= {"test_set_interval": _in_percent(alone.by_test_set)} | {name: alone.mean(name) for name in COSTS}
            rows.append(row | {"other_code": run.code_note is not None, "directory": str(run.directory)})
    return rows


def _every_metric(groups: Sequence[Group]) -> list[str]:
    """The metrics of the table, then all others that one of the runs has a value of."""
    named = {name for each in groups for run in each.runs for name, value in run.metrics.items() if value is not None}
    return list(dict.fromkeys([*measures_of(groups), *sorted(named)]))


def _in_percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row.values()])
    return text.getvalue().rstrip("\n")


class _Callable(ModuleType):
    """This module as a function, too: `clsim.compare(runs)` in a notebook, and `from clsim import compare` in code."""

    def __call__(self, *runs: Any) -> Any:
        """See `clsim.notebooks.table`."""
        from clsim import notebooks

        return notebooks.table(*runs)


sys.modules[__name__].__class__ = _Callable
