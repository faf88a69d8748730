"""The pictures of a stream, and which of them there are: what was not recorded is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clsim import rundir
from clsim.metrics import mean_and_interval
from clsim.recorders.report import svg
from clsim.recorders.report.data import Row, Stream

MOST_CLASSES = 40  # in a picture by class

COSTS = (
    ("trainable_parameters", "trainable parameters"),
    ("stored_bytes_per_experience", "stored bytes per experience"),
    ("seconds", "seconds"),
)


@dataclass(frozen=True)
class Figure:
    """Pictures under one title, each with a caption; `notes` explain them."""

    title: str
    pictures: list[tuple[str, str]]  # (caption, SVG)
    notes: list[str] = field(default_factory=list)
    scale: float = 0.0  # the end of the colour scale that the pictures share, in %; 0: they have none
    legend: bool = False  # whether the colours and numbers of rows are explained
    chart: bool = False  # whether pictures are drawn as wide as there is room


def figures(stream: Stream) -> list[Figure]:
    """All pictures of a stream for which there are results."""
    kinds = (curves, anytime, trade_offs, matrices, tasks, classes, confusions, prompts)
    return [figure for kind in kinds if (figure := kind(stream)) is not None]


def curves(stream: Stream) -> Figure | None:
    """Average accuracy after each experience."""
    found = [_curve(stream, row, row.curve) for row in stream.rows if len(row.curve) > 1]
    if not found:
        return None
    picture = svg.curves(found, "after experience", "average accuracy, %", whole=True)
    notes = [f"Mean over the experiences learned so far. {_intervals('Bands', stream)}"]
    missing = [row.name for row in stream.rows if len(row.curve) < 2]
    if missing:
        notes.append(
            f"Without a curve, because not every experience learned was tested each time: {', '.join(missing)}."
        )
    return Figure("Average accuracy after each experience", [("", picture)], notes, legend=True, chart=True)


def anytime(stream: Stream) -> Figure | None:
    """Accuracy at the evaluations inside experiences."""
    found = [_curve(stream, row, row.anytime) for row in stream.rows if len(row.anytime) > 1]
    if not found:
        return None
    picture = svg.curves(found, "training images so far", "accuracy, %")
    notes = [f"On all images tested then, of the experiences begun so far. {_intervals('Bands', stream)}"]
    return Figure("Accuracy inside experiences", [("", picture)], notes, legend=True, chart=True)


def _curve(stream: Stream, row: Row, places: Sequence[tuple[float, float, float | None]]) -> svg.Curve:
    shown = [(x, mean, None) for x, mean, _ in places] if _crowded(stream) else places
    return svg.Curve(row.name, row.label, shown, row.series)


def trade_offs(stream: Stream) -> Figure | None:
    """Forgetting against learning accuracy, and the first metric against costs."""
    pictures = []
    points = _points(stream, "learning_accuracy", "forgetting", 100)
    if points:
        least = min([0.0, *(100 * value for row in stream.rows for value in row.group.values("forgetting"))])
        picture = svg.scatter(points, "learning accuracy, %", "forgetting, %", least=least, percentages=True)
        pictures.append(("Forgetting against learning accuracy: the lower right is best", picture))
    first = stream.measures[0] if stream.measures else ""
    label = first.replace("_", " ")
    for name, title in COSTS:
        points = _points(stream, name, first, 1)
        if points:
            picture = svg.scatter(points, title, f"{label}, %", log=True)
            pictures.append((f"{label.capitalize()} against {title}: the upper left is best", picture))
    notes = [_intervals("Bars", stream)]
    return Figure("Trade-offs", pictures, notes, legend=True, chart=True) if pictures else None


def _intervals(name: str, stream: Stream) -> str:
    """What bands or bars are."""
    if _crowded(stream):
        return f"{name} are left out for more than {svg.COLOURS} methods: the table has the intervals."
    return f"{name}: 95 % intervals over seeds, cut off at the ends of the axes."


def _crowded(stream: Stream) -> bool:
    """Whether the intervals of so many methods would hide each other."""
    return len(stream.rows) > svg.COLOURS


def _points(stream: Stream, x: str, y: str, scale: int) -> list[svg.Point]:
    """The rows' means of two figures; x is multiplied by `scale`: 100 for a metric, which has an interval, else 1."""
    found = []
    for row in stream.rows:
        across, up = row.group.values(x), row.group.values(y)
        if across and up:
            x_mean, x_half = mean_and_interval(across)
            y_mean, y_half = mean_and_interval(up)
            halves = [None if half is None or _crowded(stream) else 100 * half for half in (x_half, y_half)]
            x_half, y_half = halves if scale == 100 else (None, halves[1])
            at = (scale * x_mean, 100 * y_mean, x_half, y_half)
            found.append(svg.Point(row.name, row.label, *at, row.series))
    return found


def matrices(stream: Stream) -> Figure | None:
    """Accuracy matrices side by side, on one colour scale."""
    pictures = [(row.name, _matrix(row, row.matrix)) for row in stream.rows if row.matrix]
    names = "; ".join(f"{number}: {name}" for number, name in enumerate(stream.experiences, 1))
    where = f"Tested on {names}." if names else "Which classes an experience has depends on the seed."
    notes = [f"Means over seeds. {where}"]
    return Figure("Accuracy matrices", pictures, notes, scale=100.0) if pictures else None


def tasks(stream: Stream) -> Figure | None:
    """How often the experience of a test image was detected."""
    pictures = [(row.name, _matrix(row, row.task_matrix)) for row in stream.rows if row.task_matrix]
    notes = [
        "The share of the test images of each true experience whose experience the method detected; means over seeds.",
        "Runs do not record which experience was detected instead.",
    ]
    return Figure("Detected experience", pictures, notes, scale=100.0) if pictures else None


def _matrix(row: Row, values: list[list[float | None]]) -> str:
    before = row.has_baseline and len(values) == len(row.matrix)
    rows = [*(["before"] if before else []), *map(str, range(1, len(values) + 1 - before))]
    return svg.heat_map(values, rows, list(map(str, range(1, len(values[0]) + 1))), "after experience", "tested on")


def classes(stream: Stream) -> Figure | None:
    """Accuracy of each class of the target, a column for each row of the table."""
    counted = [(row, row.confusion) for row in stream.rows]
    found = [(row, confusion.diagonal()) for row, confusion in counted if confusion is not None]
    if not found or len({len(diagonal) for _, diagonal in found}) > 1:
        return None
    values = np.stack([diagonal for _, diagonal in found], axis=1)
    tested = np.flatnonzero(~np.isnan(values).all(axis=1))
    hardest = tested[np.argsort(np.nanmean(values[tested], axis=1), kind="stable")][:MOST_CLASSES]
    shown = np.sort(hardest) if len(hardest) == len(tested) else hardest
    names = class_names(found[0][0], len(values))
    picture = svg.heat_map(
        _cells(values[shown]), [names[number] for number in shown], [row.label for row, _ in found], "class", "method"
    )
    notes = ["The share of each class's target images that were classified correctly, over all seeds."]
    if len(shown) < len(tested):
        few = f"The {len(shown)} of {len(tested)} classes with the lowest mean."
        notes.append(f"{few} Confusion is drawn for at most {MOST_CLASSES} classes.")
    return Figure("Accuracy by class", [("", picture)], notes, scale=100.0, legend=stream.numbered)


def confusions(stream: Stream) -> Figure | None:
    """Predictions of each true class, as heat maps."""
    found = [(row, row.confusion) for row in stream.rows]
    pictures = []
    for row, confusion in found:
        if confusion is not None and len(confusion) <= MOST_CLASSES:
            names = class_names(row, len(confusion))
            picture = svg.heat_map(_cells(confusion), names, names, "true class", "predicted class")
            pictures.append((row.name, picture))
    notes = ["The share of the target images of each true class, over all seeds."]
    return Figure("Confusion", pictures, notes, scale=100.0) if pictures else None


def prompts(stream: Stream) -> Figure | None:
    """How often each prompt of a pool was selected in each experience."""
    used = [(row, row.prompt_usage) for row in stream.rows]
    used = [(row, usage) for row, usage in used if usage and len({len(each) for each in usage}) == 1]
    if not used:
        return None
    most = max(max(map(max, usage)) for _, usage in used)
    pictures = []
    for row, usage in used:
        rows, columns = (list(map(str, range(1, count + 1))) for count in (len(usage), len(usage[0])))
        picture = svg.heat_map(usage, rows, columns, "experience", "prompt", most)
        pictures.append((f"{row.name}, seed {row.seeds[0]}", picture))
    notes = [
        "The share of each prompt in all selections while an experience was learned, in %.",
        "One seed of each row: other seeds have other prompts.",
    ]
    return Figure("Use of prompts", pictures, notes, scale=most)


def class_names(row: Row, count: int) -> list[str]:
    """The names of classes; their numbers where the run no longer has its checkpoint."""
    run = row.runs[0]
    if (run.directory / rundir.STATE).exists() and len(run.class_names) == count:
        return list(run.class_names)
    return list(map(str, range(count)))


def _cells(values: NDArray[np.float64]) -> Sequence[Sequence[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
