"""`--log`: the journal's numbers for other tools. It changes no result, and a resumed run writes no number twice."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clsim.errors import writing
from clsim.recorders.journal import Listener

if TYPE_CHECKING:
    from clsim.data.streams import Benchmark

CSV = "log.csv"


class Number(NamedTuple):
    """One number of a record; `time` in seconds since 1970, `experience` from 1 (0: before any training)."""

    time: float
    experience: int
    step: int  # updates since the run began
    name: str
    value: float


def opened(names: Sequence[str], directory: Path, benchmark: Benchmark) -> list[Listener]:
    """A listener for each name in `clsim.options.LOGS`."""
    tested = [experience.name for experience in benchmark.test_stream]
    made: dict[str, Any] = {"csv": CsvLog}
    return [made[name](directory, tested) for name in names]


class CsvLog:
    """A listener that writes `log.csv`: a line for each number, with the columns of `Number`.

    The file is begun again whenever the run goes on: the journal replays what was kept of it, so that no number is
    there twice.
    """

    def __init__(self, directory: Path, tested: Sequence[str]) -> None:
        self._path = directory / CSV
        self._tested = tested
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(Number._fields)

    def write(self, record: dict[str, Any]) -> None:
        """Write the record's numbers; after an evaluation they can be read by others."""
        with writing(self._path):
            self._writer.writerows(numbers(record, self._tested))
            if record["event"] == "evaluation":
                self._file.flush()

    def close(self) -> None:
        """Write what is left, and close the file."""
        with writing(self._path):
            self._file.close()


def numbers(record: dict[str, Any], tested: Sequence[str]) -> Iterator[Number]:
    """The numbers of a journal's record, under the names that TensorBoard shows; undefined ones are left out.

    `tested`: names of the test experiences.
    """
    if "step" not in record:  # the start and the end of a run
        return
    for name, value in _named(record, tested):
        if value is not None:
            yield Number(record["time"], record["experience"], record["step"], name, value)


def _named(record: dict[str, Any], tested: Sequence[str]) -> Iterator[tuple[str, float | None]]:
    match record["event"]:
        case "step":
            yield from (("train/loss", record["loss"]), ("train/lr", record["lr"]))
        case "evaluation":
            for number, (name, value) in enumerate(zip(tested, record["accuracy"], strict=True), start=1):
                yield f"accuracy/{number:02d} {name}", value
            yield from ((f"metrics/{name}", value) for name, value in record["metrics"].items())
        case "anytime":
            for number, (name, value) in enumerate(zip(tested, record["accuracy"], strict=True), start=1):
                yield f"anytime/{number:02d} {name}", value
        case "log" if isinstance(record["value"], list):
            yield from ((f"{record['name']}/{index:02d}", value) for index, value in enumerate(record["value"]))
        case "log":
            yield f"log/{record['name']}", record["value"]
