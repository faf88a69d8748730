"""`clsim compare --plot`: what runs reach against what they train, as the visual-prompt-tuning paper draws it.

Jia et al. 2022, arXiv:2203.12119. One panel for each scenario, as a PNG and in TensorBoard.
"""

from collections.abc import Sequence
from pathlib import Path

from clsim.compare import Group
from clsim.errors import RequestError
from clsim.metrics import mean_and_interval
from clsim.recorders.figures import Point, accuracy_cost_figure, to_array

TAG = "accuracy against trainable parameters"


def draw(groups: Sequence[Group], file: Path) -> None:
    """Draw the groups into a PNG file, and as an image into a TensorBoard run in the folder ``file`` without suffix.

    What stood there from before is replaced. Raises RequestError where no group has both figures.
    """
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
    figure = accuracy_cost_figure(panels)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)

    from torch.utils.tensorboard import SummaryWriter  # late: a second to import

    folder = file.with_suffix("")
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
    writer.add_image(TAG, to_array(figure), dataformats="HWC")  # type: ignore[no-untyped-call]
    writer.close()  # type: ignore[no-untyped-call]
