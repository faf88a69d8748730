"""Runs in notebooks: a run as a small table, and `clsim.compare(runs)` with `to_pandas()` and `plot()`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsim import compare
from clsim.compare import Group
from clsim.errors import RequestError
from clsim.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """Finished runs, those that differ only in their seed together; a notebook shows it as a table."""

    groups: tuple[Group, ...]
    unfinished: tuple[Path, ...] = field(default=(), repr=False)  # directories that were found and left out

    def records(self, long: bool = False) -> list[dict[str, Any]]:
        """A row for each group, or with `long` for each run: every metric in %, costs in bytes and seconds."""
        return compare.run_records(self.groups) if long else compare.records(self.groups)

    def to_pandas(self, long: bool = False) -> Any:
        """`records` as a pandas DataFrame. Raises RequestError if pandas is not installed."""
        try:
            import pandas  # late: clsim does not depend on it
        except ImportError as error:
            raise RequestError("to_pandas() needs pandas: pip install pandas; records() needs nothing") from error
        return pandas.DataFrame.from_records(self.records(long))

    def plot(self) -> Figure:
        """Accuracy against trainable parameters, a panel for each scenario. Raises RequestError without a run."""
        from clsim.recorders import comparison  # late: matplotlib

        return comparison.figure(self.groups)

    def _repr_html_(self) -> str:
        names = compare.measures_of(self.groups)
        rows = [{"scenario": each.scenario, **compare.cells(each, names)} for each in self.groups]
        left_out = [f"not finished: {path}" for path in self.unfinished]
        if not rows:
            return f"<p>{escape('; '.join(['no finished run', *left_out]))}</p>"
        notes = "".join(f"<p>{escape(text)}</p>" for text in left_out)
        return _html([list(rows[0]), *(list(row.values()) for row in rows)], first="th") + notes


def table(*runs: Run | str | Path | Iterable[Run | str | Path]) -> Comparison:
    """Runs, directories, or folders that contain some, in any nesting of lists, compared as by `clsim compare`.

    Raises RequestError for a path without runs, and if a run is broken.
    """
    given = list(_flat(runs))
    found, unfinished = compare.find([Path(each) for each in given if not isinstance(each, Run)])
    kept = {run.directory.resolve(): run for run in [*(each for each in given if isinstance(each, Run)), *found]}
    return Comparison(tuple(compare.grouped(list(kept.values()))), tuple(unfinished))


def _flat(runs: Iterable[Any]) -> Iterable[Run | str | Path]:
    for each in runs:
        if isinstance(each, Run | str | Path):
            yield each
        else:
            yield from _flat(each)


def run_html(run: Run) -> str:
    """The metrics of a run as an HTML table, and its settings as one that can be opened; all texts are escaped."""
    named = " ".join(str(run.summary[name]) for name in ("scenario", "strategy", "backbone"))
    title = f"{named}, seed {run.summary['seed']}"
    metrics = [
        (name.replace("_", " "), f"{100 * value:.1f} %") for name, value in run.metrics.items() if value is not None
    ]
    settings = [(f"scenario.{name}", str(value)) for name, value in run.scenario_settings.items()]
    settings += [(name, str(value)) for name, value in run.settings.items()]
    heading = f"<p><b>{escape(title)}</b><br>{escape(str(run.directory))}</p>"
    return f"{heading}{_html(metrics)}<details><summary>settings</summary>{_html(settings)}</details>"


def _html(rows: Sequence[Sequence[str]], first: str = "td") -> str:
    """An HTML table; `first`: the kind of cells in the first row."""
    lines = []
    for number, row in enumerate(rows):
        kind = "td" if number else first
        lines.append(f"<tr>{''.join(f'<{kind}>{escape(text)}</{kind}>' for text in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"
