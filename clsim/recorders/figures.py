"""Figures of runs, drawn without any global state of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clsim.metrics import Counts, accuracy_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
MAX_TICKS = 25  # labels on an axis, and numbers in a row of cells: more would overlap
MAX_NAME = 28  # characters of an experience's name


def accuracy_matrix_figure(
    correct: Counts,
    total: Sequence[int],
    names: Sequence[str],
    before: bool = False,
    learned: Sequence[str] | None = None,
) -> Figure:
    """Accuracies in %: a row after each experience and a column for each that is tested, (rows, T) as in clsim.metrics.

    Rows still to come, and cells never evaluated, are empty, so that all pictures of a run have one shape. `learned`
    names the experiences learned, where they differ from those tested.
    """
    experiences = len(total)
    learned = names if learned is None else learned
    shown = np.full((len(learned) + before, experiences), np.nan)
    shown[: len(correct)] = 100 * accuracy_matrix(correct, total)
    labels = ["before"] * before + [f"{number}: {_short(name)}" for number, name in enumerate(learned, 1)]

    from matplotlib.figure import Figure

    cell = 0.55 if experiences <= 10 else 0.40 if experiences <= MAX_TICKS else 10 / experiences  # inches
    margin = 0.5 + 0.075 * max(map(len, labels))
    width, height = max(experiences, 2) * cell, len(shown) * cell
    figure = Figure(figsize=(width + margin + 1.0, height + 0.95), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="equal")
    axes.set_facecolor("#f0f0f0")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("tested on")
    axes.set_ylabel("after experience")
    every = -(-experiences // MAX_TICKS)
    axes.set_xticks(range(0, experiences, every), [str(j + 1) for j in range(0, experiences, every)], fontsize=9)
    axes.set_yticks(range(0, len(labels), every), labels[::every], fontsize=9)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if every == 1:
        axes.set_xticks(np.arange(experiences + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(shown) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        for (row, column), value in np.ndenumerate(shown):
            if not np.isnan(value):
                text = percent(value / 100, experiences)
                ink = "black" if value > 60 else "white"  # viridis is light from about there
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / height), aspect=15, pad=0.02)
    bar.set_label("accuracy, %", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def bars_figure(values: Sequence[float], title: str) -> Figure:
    """One bar for each value, in order, numbered from 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(max(4.0, 0.3 * len(values)), 14.0), 2.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(range(len(values)), values, width=0.8, color="#31688e")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_xticks(range(0, len(values), -(-len(values) // 40)))
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    if len(values) <= 20:
        axes.bar_label(bars, [f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values], fontsize=7)
    return figure


def to_array(figure: Figure) -> NDArray[np.uint8]:
    """The figure as (H, W, 3) pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def percent(value: float | None, experiences: int) -> str:
    """A fraction in %, with a decimal where a row of the matrix has room for it; "-" for None or NaN."""
    if value is None or np.isnan(value):
        return "-"
    return f"{100 * value:.1f}" if experiences <= 10 else f"{100 * value:.0f}"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


class Point(NamedTuple):
    """A method in `accuracy_cost_figure`."""

    name: str
    parameters: float  # trainable
    accuracy: float  # in %
    interval: float | None = None  # half its width, in %


def accuracy_cost_figure(panels: Mapping[str, Sequence[Point]]) -> Figure:
    """Accuracy against trainable parameters, on a logarithmic axis; a panel for each title.

    A method that trains nothing has no place on such an axis: a dashed line shows its accuracy.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.4 * rows), dpi=DPI, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in every[len(panels) :]:
        axes.remove()
    for axes, (title, points) in zip(every, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_xlabel("trainable parameters")
        axes.set_ylabel("accuracy, %")
        axes.grid(color="#e0e0e0", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        placed = [point for point in points if point.parameters > 0]
        if placed:
            ends = [f(point.parameters for point in placed) for f in (min, max)]
            axes.set_xlim(ends[0] / 2, ends[1] * 4)  # room for the names on the right
        for point in points:
            if point.parameters > 0:
                error = point.interval or 0.0
                axes.errorbar(
                    point.parameters, point.accuracy, error, fmt="o", color="#31688e", capsize=2, markersize=5
                )
            else:
                axes.axhline(point.accuracy, color="#35b779", linestyle="--", linewidth=1)
                axes.annotate(
                    point.name,
                    (1, point.accuracy),
                    (0, 2),
                    ("axes fraction", "data"),
                    "offset points",
                    ha="right",
                    fontsize=8,
                )
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100))  # an interval of few seeds reaches beyond what an accuracy can be
        _label(figure, axes, placed)
    return figure


def _label(figure: Figure, axes: Any, points: Sequence[Point]) -> None:
    """Names next to their points, each in the first of several places where it covers no other name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # positions are known only after the layout
    taken: list[Any] = []
    places = [(6, 4), (6, -10), (-6, 4), (-6, -10), *((6, dy) for dy in (16, -22, 28, -34, 40))]  # points of type
    for point in sorted(points, key=lambda each: -each.accuracy):
        for place in places:
            at, side = (point.parameters, point.accuracy), "left" if place[0] > 0 else "right"
            text = axes.annotate(point.name, at, place, "data", "offset points", ha=side, fontsize=8)
            box = text.get_window_extent(canvas.get_renderer())
            if place == places[-1] or not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        taken.append(box)


# adaptation


def grid_figure(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str, axis_names: tuple[str, str]
) -> Figure:
    """(R,C) values in %, NaN where there is none, as a heat map with a name for each row and column.

    `axis_names` are the titles of the axis of rows and of that of columns.
    """
    from matplotlib.figure import Figure

    cell = 0.6 if max(values.shape) <= 12 else 12 * 0.6 / max(values.shape)  # inches
    margin = 0.5 + 0.08 * min(MAX_NAME, max(map(len, rows)))
    figure = Figure(figsize=(len(columns) * cell + margin + 0.9, len(rows) * cell + 1.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="equal")
    axes.set_facecolor("#f0f0f0")
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(axis_names[0], fontsize=9)
    axes.set_xlabel(axis_names[1], fontsize=9)
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        every = -(-len(names) // MAX_TICKS)
        axis.set_ticks(range(0, len(names), every), [_short(name) for name in names[::every]], fontsize=8)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if max(values.shape) <= MAX_TICKS:
        for (row, column), value in np.ndenumerate(values):
            if value > 0:  # most cells of a confusion matrix are zero: they are easier to read without numbers
                ink = "black" if value > 60 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=20, pad=0.02).ax.tick_params(labelsize=8)
    return figure


def map_figure(maps: Mapping[str, NDArray[np.float64]], classes: NDArray[np.int64], domains: Sequence[str]) -> Figure:
    """Maps (n,2) of the same n images in rows, coloured by class on the left and by domain on the right.

    `classes` are (n,), `domains` the name of each image's domain.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2 * len(maps)), dpi=DPI, layout="constrained")
    names = list(dict.fromkeys(domains))
    where = np.array([names.index(domain) for domain in domains])
    for (title, points), (left, right) in zip(maps.items(), figure.subplots(len(maps), 2, squeeze=False), strict=True):
        for domain, marker in enumerate(("o", "^", "s", "D", "v", "P")[: len(names)]):
            own = where == domain
            shades = colormaps["turbo"](classes[own] / max(1, classes.max()))
            left.scatter(*points[own].T, s=9, c=shades, marker=marker, linewidths=0)
            colour = colormaps["viridis"](domain / max(1, len(names) - 1) * 0.8)
            right.scatter(
                *points[own].T, s=9, color=colour, marker=marker, linewidths=0, label=names[domain], alpha=0.7
            )
        left.set_title(f"{title}: classes", fontsize=10)
        right.set_title(f"{title}: domains", fontsize=10)
        right.legend(fontsize=8, frameon=False, markerscale=2)
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#d0d0d0")
    return figure
