"""Console: the progress of a run, and the final table.

The progress display goes to standard error, and only to a terminal; lines and tables go to standard output, without
control characters where that is no terminal.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

import rich.console
from rich.columns import Columns
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from clsim.events import Part, State, Step
from clsim.metrics import accuracy_matrix
from clsim.recorders.figures import percent

if TYPE_CHECKING:
    from clsim.data.streams import Benchmark
    from clsim.results import Run

WIDTH = 120  # columns at most, and where there is no terminal
MATRIX = 24  # experiences whose matrix is that narrow
PAUSE = 0.2  # seconds between two updates of the progress display


def console(stream: TextIO) -> rich.console.Console:
    """A rich console on the stream: control characters only for a terminal, at most WIDTH columns."""
    terminal = stream.isatty()
    made = rich.console.Console(file=stream, force_terminal=terminal, highlight=False, markup=False, emoji=False)
    made.width = min(made.width, WIDTH) if terminal else WIDTH
    return made


def tell(text: str) -> None:
    """Print a text to standard output, e.g. what was found."""
    console(sys.stdout).print(text, soft_wrap=True)


class Console(Part):
    """Shows progress while training, and prints a line after each evaluation. `quiet`: neither."""

    def __init__(self, benchmark: Benchmark, quiet: bool = False) -> None:
        self._experiences = len(benchmark.test_stream)
        self._quiet = quiet
        self._out = console(sys.stdout)
        err = console(sys.stderr)
        self._progress: Progress | None = None
        if err.is_terminal and not err.is_dumb_terminal and not quiet:
            column = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
            self._progress = Progress(
                BarColumn(12),
                TaskProgressColumn(),
                column,
                console=err,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,  # its lines would go to standard error
                redirect_stderr=False,
            )
            self._task = self._progress.add_task("", total=1.0)
        self._shown = -PAUSE  # when the display was last drawn
        self._began: tuple[float, float] | None = None  # time, and the share of the run done before
        self._epoch_began = 0.0
        self._epoch_images = 0

    def close(self) -> None:
        """Remove the progress display; also after an error, because it hides the terminal's cursor."""
        if self._progress is not None:
            self._progress.stop()

    def before_training(self, s: State) -> None:
        """Start the progress display."""
        if self._progress is not None:
            self._progress.start()

    def before_training_exp(self, s: State) -> None:
        """Show which experience begins."""
        self._show_training(s, loss="-")

    def before_training_epoch(self, s: State) -> None:
        """Start the clock of the speed again: the time of an evaluation must not count."""
        self._epoch_began, self._epoch_images = time.monotonic(), 0
        self._show_training(s, loss="-")

    def after_training_iteration(self, s: Step) -> None:
        """Show loss, speed and time left; the loss, for which a GPU has to be waited for, not in every step."""
        if self._progress is None:
            return
        self._epoch_images += len(s.batch)
        if time.monotonic() - self._shown >= PAUSE:
            self._show_training(s, loss=f"{s.loss.item():.3f}")

    def before_eval(self, s: State) -> None:
        """Show that the learner is being evaluated."""
        self._show(f"evaluating {_after(s, self._experiences)}")

    def after_eval(self, s: State) -> None:
        """Print the line of this evaluation."""
        if self._quiet:
            return
        self.close()  # two streams, one screen
        self._out.print(_line(s, self._experiences), soft_wrap=True)
        if self._progress is not None:
            self._progress.start()

    def after_training(self, s: State) -> None:
        """Remove the progress display."""
        self.close()

    def _show(self, text: str, share: float | None = None) -> None:
        """Update the display; `share` of the run done, in [0, 1], None: as before."""
        if self._progress is not None:
            self._shown = time.monotonic()
            self._progress.update(self._task, description=text, completed=share, refresh=True)

    def _show_training(self, s: State | Step, loss: str) -> None:
        now, share = time.monotonic(), self._share(s)
        if self._began is None:
            self._began = now, share
        began, already = self._began
        left = "-:--:--"
        if share > already:
            left = str(timedelta(seconds=round((now - began) * (1 - share) / (share - already))))
        text = f"{left} left, experience {s.experience.index + 1}/{self._experiences}, epoch {s.epoch + 1}, loss {loss}"
        if self._epoch_images:
            text += f", {self._epoch_images / max(now - self._epoch_began, 1e-9):.0f} images/s"
        self._show(text, share)

    def _share(self, s: State | Step) -> float:
        """The share of the run's training that is done, where every experience counts the same."""
        after = self._experiences - 1 - s.experience.index  # none for joint training, a single last experience
        return (s.trained + s.progress) / (s.trained + 1 + after)


def _after(s: State, experiences: int) -> str:
    return f"after experience {s.trained:>{len(str(experiences))}}/{experiences}" if s.trained else "before training"


def _line(s: State, experiences: int) -> str:
    """``after experience 2/5: average 81.2 %, forgetting 3.1 %, accuracies 80.1 82.3``"""
    parts = []
    shown = {"average_accuracy": "average", "forgetting": "forgetting", "task_accuracy": "tasks detected"}
    for name, label in shown.items():
        value = s.metrics.get(name)
        if value is not None:
            parts.append(f"{label} {100 * value:.1f} %")
    known = [j for j, count in enumerate(s.correct[-1]) if count is not None]
    if experiences <= MATRIX and known:
        row = accuracy_matrix(s.correct[-1:], s.total)[0, : known[-1] + 1]
        parts.append(f"accuracies {' '.join(percent(value, experiences) for value in row)}")
    return f"{_after(s, s.info.num_experiences)}: {', '.join(parts)}"


# the final table


def report(run: Run) -> None:
    """Print a finished run to standard output: accuracy matrix, metrics, cost, directory; and whose code made it."""
    out = console(sys.stdout)
    summary, names = run.summary, run.matrix["experiences"]
    out.print(f"\n{summary['scenario']}: {summary['strategy']} on {summary['backbone']}, seed {summary['seed']}\n")
    if len(names) <= MATRIX:
        out.print(_matrix(run.matrix))
        out.print()
        out.print(Columns([Text(f"{number}: {name}") for number, name in enumerate(names, 1)], padding=(0, 3)))
    else:
        out.print(_first_and_last(run.matrix))
    out.print()
    out.print(_metrics(run.metrics, summary.get("notes", {})))
    for name, note in summary.get("notes", {}).items():
        if name not in run.metrics:
            out.print(f"{name.replace('_', ' ')}: {note}")
    out.print()
    out.print(_cost(summary["cost"] | {"bank_seconds": summary.get("bank_seconds")}))
    if run.code_note is not None:
        out.print(f"\n{run.code_note}", soft_wrap=True)
    out.print(f"\n{run.directory}", soft_wrap=True)


def _table(*headers: str, digits: int = 0) -> Table:
    """A table without lines; the first column is of text, the others of numbers, at least `digits` wide."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True, min_width=digits)
    return table


def _matrix(matrix: dict[str, Any]) -> Table:
    """Accuracies in %: a row after each experience, a column for each that is tested."""
    correct, total = matrix["correct"], matrix["total"]
    before = int(matrix.get("before", len(correct) > len(total)))  # whether row 0 was measured before any training
    digits = len(percent(1.0, len(total)))
    table = _table("after, on (%)", *(str(number) for number in range(1, len(total) + 1)), digits=digits)
    for index, row in enumerate(accuracy_matrix(correct, total)):
        name = str(index + 1 - before) if index >= before else "before"
        table.add_row(name, *(percent(value, len(total)) for value in row))
    return table


def _first_and_last(matrix: dict[str, Any]) -> Table:
    """For a matrix that is too wide: the accuracy on each experience when it was just learned, and at the end, in %."""
    rows = accuracy_matrix(matrix["correct"], matrix["total"])[-len(matrix["total"]) :]
    table = _table("experience", "just learned (%)", "at the end (%)")
    for index, name in enumerate(matrix["experiences"]):
        table.add_row(f"{index + 1}: {name}", percent(rows[index, index], 1), percent(rows[-1, index], 1))
    return table


def _metrics(metrics: dict[str, float | None], notes: dict[str, str]) -> Table:
    """Each metric in %, or the reason why it is undefined; metrics undefined for the same reason share a line."""
    table = _table("metric", "%")
    table.add_column("")
    reasons: dict[str, list[str]] = {}
    for name, value in metrics.items():
        label = name.replace("_", " ")
        if value is None:
            reasons.setdefault(notes.get(name, ""), []).append(label)
        else:
            table.add_row(label, f"{100 * value:.2f}", notes.get(name, ""))
    for reason, labels in reasons.items():
        table.add_row(labels[0] if len(labels) == 1 else f"{len(labels)} others", "-", reason)
    return table


def _cost(cost: dict[str, float | None]) -> Table:
    table = _table("cost", "")
    for name, value in cost.items():
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _quantity(name, value))
    return table


def _quantity(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
