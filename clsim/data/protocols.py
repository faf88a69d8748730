"""Protocols: what is tested, among which classes, what is measured, and what a method may know.

The loop asks these objects and has no rules of its own: a new protocol is a new class here, or in a user's scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clsim import metrics
from clsim.errors import unknown

if TYPE_CHECKING:
    from clsim.data.streams import Experience
    from clsim.events import State


class Protocol:
    """The rules of a stream. This one is that of domains: the same classes each time, all of them always tested."""

    name: str = "domain"  # in files, in the metrics' summary and in StreamInfo
    new_classes: bool = False  # whether classes arrive over time: a plain classifier is not tested on those to come
    tells_task: bool = False  # whether test images come with the index of their experience
    has_target: bool = False  # whether images of a target without labels are learned from
    counts_tasks: bool = True  # whether a test experience is the training experience of the same index
    draws_target: bool = False  # whether the target's confusion is counted, and pictures of both domains are drawn

    def tests_ahead(self, scores_unseen: bool) -> bool:
        """Whether experiences are tested before they are learned, by a method that may score classes unseen."""
        return scores_unseen or not self.new_classes

    def tested_after(self, index: int, tests: Sequence[Experience], scores_unseen: bool) -> Sequence[Experience]:
        """The test experiences to evaluate after learning experience `index`."""
        return tests if self.tests_ahead(scores_unseen) else tests[: index + 1]

    def competing(self, own: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
        """The classes among which test images are classified: their experience's `own`, or all `others` as well.

        `others` are the classes learned so far, or every class for a method that may score classes unseen.
        """
        return own if self.tells_task else others

    def counts_confusion(self, column: int) -> bool:
        """Whether the predictions on this test experience are counted class by class."""
        return self.draws_target and column == 0

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """Every metric, as far as the run has come."""
        return metrics.measures(s.correct, s.total, before=s.has_baseline_row)


class ClassIncremental(Protocol):
    """New classes in each experience; the task of a test image is a secret."""

    name = "class"
    new_classes = True


class TaskIncremental(Protocol):
    """New classes in each experience; a test image is classified among those of its own."""

    name = "task"
    new_classes = True
    tells_task = True


class BaseToNew(TaskIncremental):
    """Half of the classes are learned, and both halves tested, each among its own classes."""

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """Accuracy on base and new classes, and their harmonic mean."""
        return metrics.base_to_new(s.correct, s.total)


class Targets(Protocol):
    """A labelled source, and one unlabelled target after the other."""

    name = "targets"
    has_target = True


class Pair(Targets):
    """A labelled source and an unlabelled target, learned at once; tested on target, target test and source test."""

    name = "pair"
    counts_tasks = False
    draws_target = True

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """The metrics of adaptation."""
        return metrics.adaptation(s.correct, s.total, s.has_baseline_row, s.confusion, scores_unseen)


PROTOCOLS: dict[str, Protocol] = {
    each.name: each for each in (ClassIncremental(), Protocol(), TaskIncremental(), Pair(), Targets())
}


def protocol(named: str | Protocol) -> Protocol:
    """A protocol from its name; one that is an object already is returned as it is. Raises RequestError."""
    if isinstance(named, Protocol):
        return named
    if named not in PROTOCOLS:
        raise unknown("protocol", named, PROTOCOLS)
    return PROTOCOLS[named]
