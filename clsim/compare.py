"""`clsim compare`: finished runs side by side, those that differ only in their seed together."""

import csv
import io
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clsim import plugins
from clsim.errors import RequestError
from clsim.listing import size_text
from clsim.metrics import mean_and_interval

METRICS = (
    "average_accuracy",
    "forgetting",
    "average_incremental_accuracy",
    "backward_transfer",
    "learning_accuracy",
)
ADAPTATION = ("target_accuracy", "target_class_mean", "target_test_accuracy", "source_accuracy", "adaptation_gain")
BASE_TO_NEW = ("base_accuracy", "new_accuracy", "harmonic_mean")
BASELINE = "source_only"  # what adaptation is measured against where there is no zero-shot classifier
# of each run: its summary's costs, and trainable parameters in % of the backbone's
COSTS = (
    "trainable_parameters",
    "trainable_percent",
    "stored_bytes_per_experience",
    "memory_bytes",
    "seconds",
    "images_per_second",
    "peak_memory_bytes",
)
# of a run's directory and of how it was asked for; nothing that a result depends on
IGNORED = ("seed", "out", "data_dir", "preset", "scenario", "strategy", "backbone")


@dataclass(frozen=True)
class Finished:
    """A finished run, as far as comparisons go."""

    directory: Path
    summary: dict[str, Any]
    scenario_settings: dict[str, Any]  # fields of the scenario
    settings: dict[str, Any]  # fields of the strategy, and options

    @classmethod
    def read(cls, directory: Path) -> "Finished":
        """Raises RequestError for a file that is not what a run writes."""
        try:
            summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
            config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
            scenario, strategy = dict(config["scenario"]), dict(config["strategy"])
            options = {key: value for key, value in config.items() if key not in IGNORED}
            del scenario["name"], strategy["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{directory} is not a run directory of clsim: {error!r}") from error
        return cls(directory, summary, scenario, strategy | options)

    @property
    def figures(self) -> dict[str, Any]:
        """Metrics and costs by name, COSTS among them as far as the run's version has them."""
        cost = dict(self.summary["cost"])
        if cost.get("backbone_parameters") and "trainable_parameters" in cost:
            cost["trainable_percent"] = 100 * cost["trainable_parameters"] / cost["backbone_parameters"]
        return {**cost, **self.summary["metrics"], **self.summary}

    @property
    def gained(self) -> str:
        """Equal for runs of adaptation that one source_only run is the measure of."""
        names = [self.summary[name] for name in ("scenario", "backbone", "seed")]
        return json.dumps([names, self.scenario_settings], sort_keys=True)

    @property
    def key(self) -> str:
        """Equal for runs that differ only in their seed."""
        names = [self.summary[name] for name in ("scenario", "strategy", "backbone")]
        return json.dumps([names, self.scenario_settings, self.settings], sort_keys=True)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, with the names that tell them from other groups."""

    scenario: str
    strategy: str
    runs: tuple[Finished, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """The metrics that tell about its scenario, the most important first."""
        figures = self.runs[0].figures
        return next((names for names in (ADAPTATION, BASE_TO_NEW) if names[0] in figures), METRICS)

    def values(self, name: str) -> list[float]:
        """A metric or a cost of every run; empty where it has no meaning."""
        found = [run.figures.get(name) for run in self.runs]
        return [float(value) for value in found if isinstance(value, int | float)]

    def mean(self, name: str) -> float | None:
        """The mean of a metric or a cost over the runs."""
        values = self.values(name)
        return sum(values) / len(values) if values else None


def report(paths: Sequence[Path], style: str = "table") -> str:
    """The runs in and below `paths` as text (`table`), Markdown (`md`) or CSV (`csv`). Accuracies are in %.

    Raises RequestError where there is no run.
    """
    finished, unfinished = find(paths)
    groups = group(_with_gains(finished))
    if style == "csv":
        return _csv(groups)
    blocks = [_markdown(groups)] if style == "md" and groups else []
    if style == "table":
        for scenario in dict.fromkeys(each.scenario for each in groups):
            blocks.append(f"{scenario}\n{_table([each for each in groups if each.scenario == scenario])}")
    if unfinished:
        blocks.append(f"not finished: {', '.join(map(str, unfinished))}")
    return "\n\n".join(blocks)


def find(paths: Iterable[Path]) -> tuple[list[Finished], list[Path]]:
    """The finished runs in and below the paths, each once, and the directories of unfinished ones."""
    directories: dict[Path, Path] = {}
    for path in paths:
        below = sorted({file.parent for name in ("summary.json", "config.toml") for file in path.rglob(name)})
        if not below:
            raise RequestError(f"no run in or below {path}" if path.exists() else f"no directory {path}")
        for directory in below:
            directories.setdefault(directory.resolve(), directory)
    finished = [path for path in directories.values() if (path / "summary.json").exists()]
    return [Finished.read(path) for path in finished], [path for path in directories.values() if path not in finished]


def _with_gains(runs: Sequence[Finished]) -> list[Finished]:
    """The runs, their adaptation_gain taken against a run that learned from the source alone where they have none."""
    measure = {run.gained: run.figures.get("target_accuracy") for run in runs if run.summary["strategy"] == BASELINE}
    found = []
    for run in runs:
        own, base = run.figures.get("target_accuracy"), measure.get(run.gained)
        if own is not None and base is not None and run.figures.get("adaptation_gain") is None:
            summary = run.summary | {"metrics": run.summary["metrics"] | {"adaptation_gain": own - base}}
            run = replace(run, summary=summary)
        found.append(run)
    return found


def group(runs: Iterable[Finished]) -> list[Group]:
    """Runs that differ only in their seed, together; by scenario, the best average accuracy first."""
    by_key: dict[str, list[Finished]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    sets: list[list[Finished]] = []
    for members in by_key.values():
        # the same seed twice: data, weights or a plug-in's code have changed in between, so there is no mean to take
        repeated = len({run.summary["seed"] for run in members}) < len(members)
        sets += [[run] for run in members] if repeated else [members]
    groups = []
    for members in sets:
        first = members[0]
        scenario, strategy = first.summary["scenario"], plugins.label(first.summary["strategy"])
        peers = [other[0] for other in sets if other[0].summary["scenario"] == scenario]
        scenario_text = _distinct(first.scenario_settings, [peer.scenario_settings for peer in peers])
        peers = [peer for peer in peers if peer.scenario_settings == first.scenario_settings]
        peers = [peer for peer in peers if peer.summary["strategy"] == first.summary["strategy"]]
        settings_text = _distinct(first.settings, [peer.settings for peer in peers])
        twin = any(peer is not first and peer.key == first.key for peer in peers)
        texts = (strategy, *settings_text, *([f"#{first.summary['config_hash']}"] if twin else []))
        members = sorted(members, key=lambda run: int(run.summary["seed"]))
        groups.append(Group(" ".join((scenario, *scenario_text)), " ".join(texts), tuple(members)))
    return sorted(groups, key=lambda each: (each.scenario, -(each.mean(each.measures[0]) or 0.0)))


def _distinct(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """``key=value`` of the settings in which the others are not all the same."""
    texts = []
    for key, value in own.items():
        if any(other.get(key) != value for other in others):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            texts.append(f"{key}={text.lower() if isinstance(value, bool) else text or 'none'}")
    return texts


# tables


def _measures(groups: Sequence[Group]) -> list[str]:
    """The metrics of one or the other of the groups."""
    return list(dict.fromkeys(name for each in groups for name in each.measures))


def _cells(each: Group, names: Sequence[str]) -> dict[str, str]:
    """Heading -> text, for people; `names` are those of the metrics."""
    cells = {"strategy": each.strategy, "backbone": each.runs[0].summary["backbone"], "seeds": str(len(each.runs))}
    for name in names:
        cells[f"{name.replace('_', ' ')} %"] = _percent(each.values(name))
    for heading, name, form in (
        ("trainable parameters", "trainable_parameters", "{:,.0f}"),
        ("% of backbone", "trainable_percent", "{:.3g}"),
        ("stored per experience", "stored_bytes_per_experience", "size"),
        ("memory kept", "memory_bytes", "size"),
        ("seconds", "seconds", "{:,.1f}"),
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
    """Aligned columns; headings run down, one word a line."""
    rows = [_cells(each, _measures(groups)) for each in groups]
    headings = [heading.split() for heading in rows[0]]
    height = max(map(len, headings))
    lines = [[([""] * (height - len(words)) + words)[i] for words in headings] for i in range(height)]
    lines += [list(row.values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    # names to the left, figures to the right
    aligned = [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned[:height], rule, *aligned[height:]])


def _markdown(groups: Sequence[Group]) -> str:
    """One table, with the scenario as a column."""
    rows = [{"scenario": each.scenario, **_cells(each, _measures(groups))} for each in groups]
    columns = list(rows[0])
    marks = ["---" if name in ("scenario", "strategy", "backbone") else "---:" for name in columns]
    lines = [columns, marks, *([text.replace("|", "\\|") for text in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _csv(groups: Sequence[Group]) -> str:
    """One table of plain numbers: accuracies and their intervals in %, bytes, seconds."""
    rows: list[dict[str, Any]] = []
    for each in groups:
        row = {"scenario": each.scenario, "strategy": each.strategy, "backbone": each.runs[0].summary["backbone"]}
        row["seeds"] = len(each.runs)
        for name in _measures(groups):
            values = each.values(name)
            mean, half = mean_and_interval(values) if values else (None, None)
            row[f"{name}_percent"] = None if mean is None else round(100 * mean, 4)
            row[f"{name}_interval"] = None if half is None else round(100 * half, 4)
        rows.append(row | {name: each.mean(name) for name in COSTS})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return text.getvalue().rstrip("\n")
