"""`clsim compare --plot`: accuracy against trainable parameters, as the visual-prompt-tuning paper draws it.

Jia et al. 2022, arXiv:2203.12119. One panel for each scenario, as a PNG and in TensorBoard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clsim.compare import Group
from clsim.errors import RequestError
from clsim.metrics import mean_and_interval
from clsim.recorders.figures import Point, accuracy_cost_figure, grid_figure, to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAG = "accuracy against trainable parameters"


def draw(groups: Sequence[Group], file: Path) -> list[Path]:
    """Draw the groups into a PNG file, and as an image into a TensorBoard run in the folder ``file`` without suffix.

    Where strategies were run on several pairs of domains, a second file, ``file`` with ``-pairs``, shows their target
    accuracies as heat maps. Existing files are replaced. Returns the files; raises RequestError where no group has
    figures to draw.
    """
    figures = {file: (TAG, figure(groups))}
    file.parent.mkdir(parents=True, exist_ok=True)
    pairs = pairs_figures(groups)
    for number, (title, drawn) in enumerate(pairs.items()):
        name = f"{file.stem}-pairs{number + 1 if len(pairs) > 1 else ''}.png"
        figures[file.with_name(name)] = (title, drawn)

    from torch.utils.tensorboard import SummaryWriter  # late: a second to import

    folder = file.with_suffix("")
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
    for path, (tag, drawn) in figures.items():
        drawn.savefig(path)
        writer.add_image(tag, to_array(drawn), dataformats="HWC")  # type: ignore[no-untyped-call]
    writer.close()  # type: ignore[no-untyped-call]
    return list(figures)


def figure(groups: Sequence[Group]) -> Figure:
    """Accuracy against trainable parameters. Raises RequestError where no group has figures to draw."""
    panels: dict[str, list[Point]] = {}
    for group in groups:
        trained, accuracies = group.mean("trainable_parameters"), group.values(group.measures[0])
        if trained is not None and accuracies:
            mean, half = mean_and_interval(accuracies)
            title = f"{group.scenario}, {group.measures[0].replace('_', ' ')}"
            panels.setdefault(title, []).append(
                Point(group.strategy, trained, 100 * mean, None if half is None else 100 * half)
            )
    if not panels:
        raise RequestError("there is no finished run to draw")
    return accuracy_cost_figure(panels)


def pairs_figures(groups: Sequence[Group]) -> dict[str, Figure]:
    """By title, a heat map of target accuracies, sources by targets, for each strategy run on several pairs."""
    cells: dict[str, dict[tuple[str, str], float]] = {}
    for group in groups:
        settings, accuracy = group.runs[0].scenario_settings, group.mean("target_accuracy")
        if accuracy is not None and not settings.get("sources"):
            title = f"{group.scenario.partition('.')[0]}, {group.strategy}: target accuracy, %"
            cells.setdefault(title, {})[settings["source"], settings["target"]] = accuracy
    found = {}
    for title, pairs in cells.items():
        names = sorted({name for pair in pairs for name in pair})
        if len(pairs) > 1:
            values = np.array([[100 * pairs.get((a, b), np.nan) for b in names] for a in names])
            found[title] = grid_figure(values, names, names, title, ("source", "target"))
    return found
