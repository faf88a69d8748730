"""TensorBoard: the journal as curves and pictures, in the run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsim.recorders.figures import accuracy_matrix_figure, bars_figure, to_array

if TYPE_CHECKING:
    from clsim.data.streams import Benchmark

CURVES = 64  # a logged list of at most this length is also drawn as curves
SHARE = 0.05  # of a run's time that the pictures of a tag may take, except for its first and its last picture


class TensorBoard:
    """A listener of the journal. Training is drawn by step, evaluation and logged lists by experience.

    Evaluations inside experiences are drawn by images. A picture takes longer than many an experience does, so between
    the first and the last one only as many are drawn as `SHARE` allows. Older event files of the directory are removed:
    a resumed journal replays its records, so that no point exists twice.
    """

    def __init__(self, directory: Path, benchmark: Benchmark) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: a second to import

        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(directory))
        self._names = [experience.name for experience in benchmark.test_stream]
        self._learned = [experience.name for experience in benchmark.train_stream]
        self._rows: dict[int, list[int | None]] = {}  # counts by experience; 0: before any training
        self._next: dict[str, float] = {}  # tag -> the time from which its next picture may be drawn
        self._waiting: dict[str, Callable[[], None]] = {}  # tag -> its last picture, not drawn yet

    def write(self, record: dict[str, Any]) -> None:
        """Draw a record of the journal, at the time that it names."""
        match record["event"]:
            case "step":
                self._scalar("train/loss", record["loss"], record["step"], record["time"])
                self._scalar("train/lr", record["lr"], record["step"], record["time"])
            case "evaluation":
                self._evaluation(record)
            case "anytime":
                self._anytime(record)
            case "log":
                self._log(record)
            case "end":
                self._end(record)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def picture(self, tag: str, figure: Any, experience: int) -> None:
        """Draw a figure under a name."""
        self._image(tag, figure, experience, time.time())

    def _scalar(self, tag: str, value: float | None, x: int, when: float) -> None:
        if value is not None:
            self._writer.add_scalar(tag, value, x, walltime=when)

    def _image(self, tag: str, figure: Any, x: int, when: float) -> None:
        self._writer.add_image(tag, to_array(figure), x, walltime=when, dataformats="HWC")

    def _image_if_due(self, tag: str, figure: Callable[[], Any], x: int, when: float) -> None:
        """Draw the figure, or keep it for the end of the run if the tag's last picture was drawn only just now."""

        def draw() -> None:
            began = time.perf_counter()
            self._image(tag, figure(), x, when)
            self._next[tag] = when + (time.perf_counter() - began) / SHARE

        if when >= self._next.get(tag, when):
            self._waiting.pop(tag, None)
            draw()
        else:
            self._waiting[tag] = draw

    def _evaluation(self, record: dict[str, Any]) -> None:
        experience, when = record["experience"], record["time"]
        for number, (name, value) in enumerate(zip(self._names, record["accuracy"], strict=True), start=1):
            # numbered: TensorBoard sorts by tag, and curves should be in the stream's order
            self._scalar(f"accuracy/{number:02d} {name}", value, experience, when)
        for name, value in record["metrics"].items():
            self._scalar(f"metrics/{name}", value, experience, when)
        self._rows[experience] = record["correct"]
        before = 0 in self._rows
        # joint training leaves out all rows but the last
        empty: list[int | None] = [None] * len(self._names)
        rows = [self._rows.get(t, empty) for t in range(0 if before else 1, experience + 1)]
        self._image_if_due(
            "accuracy_matrix",
            lambda: accuracy_matrix_figure(rows, record["total"], self._names, before, self._learned),
            experience,
            when,
        )
        self._writer.flush()

    def _anytime(self, record: dict[str, Any]) -> None:
        """The accuracy on all tested images together."""
        tested = [pair for pair in zip(record["correct"], record["total"], strict=True) if pair[0] is not None]
        if tested:
            accuracy = sum(count for count, _ in tested) / sum(size for _, size in tested)
            self._scalar("anytime/average", accuracy, record["images"], record["time"])

    def _log(self, record: dict[str, Any]) -> None:
        name, value, experience, when = (record[key] for key in ("name", "value", "experience", "time"))
        if not isinstance(value, list):
            # methods without gradients take no steps: their points are drawn by experience
            self._scalar(f"log/{name}", value, record["step"] or experience, when)
            return
        known = [0.0 if item is None else item for item in value]
        self._image_if_due(name, lambda: bars_figure(known, f"{name}, experience {experience}"), experience, when)
        if len(value) <= CURVES:
            for index, item in enumerate(value):
                self._scalar(f"{name}/{index:02d}", item, experience, when)

    def _end(self, record: dict[str, Any]) -> None:
        """The last pictures, and hyper-parameters, in the same file as the metrics.

        SummaryWriter.add_hparams would make a separate run for them, named by the time.
        """
        from torch.utils.tensorboard import summary

        for draw in self._waiting.values():
            draw()
        self._waiting.clear()
        metrics = {f"metrics/{name}": value for name, value in record["metrics"].items() if value is not None}
        make: Any = summary.hparams
        for part in make(_flat(record["config"]), metrics):
            self._writer.file_writer.add_summary(part, walltime=record["time"])
        self._writer.flush()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | float]:
    """A tree as one level of dotted names; values that are no numbers become text."""
    flat: dict[str, str | float] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
