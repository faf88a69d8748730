"""Trials that end early, because their accuracy after an experience is below that of most trials before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clsim import rundir
from clsim.errors import RunFailed
from clsim.events import Part, State

FIGURE = "average_accuracy"


class Hopeless(RunFailed):
    """A trial was ended before its stream was. Its run can be continued as any other that was interrupted."""

    def __init__(self, accuracies: Sequence[float]) -> None:
        """`accuracies`: after each experience so far."""
        super().__init__(f"{100 * accuracies[-1]:.1f} % after experience {len(accuracies)}, so it was ended")
        self.accuracies = tuple(accuracies)


def accuracies(directory: Path) -> list[float]:
    """The average accuracy after each experience that a run has learned so far; empty if it has not begun."""
    journal = directory / rundir.EVENTS
    if not journal.exists():
        return []
    rows = [each for each in rundir.read_records(journal) if each["event"] == "evaluation" and each["experience"] > 0]
    return [float(row["metrics"][FIGURE]) for row in rows]


@dataclass
class Watch(Part):
    """Asks before each experience but the first whether the run is worth going on, and raises Hopeless if not.

    By then the last experience's results and checkpoint are written: the command repeated ends the trial in the same
    place, without learning anything again.
    """

    directory: Path  # of the run
    hopeless: Callable[[Sequence[float]], bool]  # is asked with the accuracy after each experience so far

    def before_training_exp(self, s: State) -> None:
        found = accuracies(self.directory)
        if found and self.hopeless(found):
            raise Hopeless(found)
