"""Protocols: which experiences and classes are tested, which metrics are computed, and what a method may know.

The loop uses only these objects and has no rules itself: a new protocol is a new class here, or in a user's scenario.
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
    """The rules of a stream. This class is the domain protocol: every experience has the same classes and is tested."""

    name: str = "domain"  # in files, in the metrics' summary and in StreamInfo
    new_classes: bool = False  # whether classes arrive over time: a plain classifier is not tested on future classes
    tells_task: bool = False  # whether test images come with the index of their experience
    has_target: bool = False  # whether training uses unlabelled images of a target
    counts_tasks: bool = True  # whether test and training experiences with the same index belong together
    only_seen: bool = False  # whether a test experience waits until images of its classes have come
    draws_target: bool = False  # whether to count the target's confusion and to draw pictures of both domains

    def tests_ahead(self, scores_unseen: bool) -> bool:
        """Whether experiences are tested before they are learned; `scores_unseen`: the method scores unseen classes."""
        return scores_unseen or not self.new_classes

    def tested_after(self, index: int, tests: Sequence[Experience], scores_unseen: bool) -> Sequence[Experience]:
        """The test experiences to evaluate after learning experience `index`."""
        return tests if self.tests_ahead(scores_unseen) else tests[: index + 1]

    def competing(self, own: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
        """The classes among which test images are classified: their experience's `own`, or `others`.

        `others`: the classes learned so far, or all classes if the method can score unseen classes.
        """
        return own if self.tells_task else others

    def counts_confusion(self, column: int) -> bool:
        """Whether the confusion matrix of this test experience is counted."""
        return self.draws_target and column == 0

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """All metrics for the run so far."""
        return metrics.measures(s.correct, s.total, before=s.has_baseline_row)


class ClassIncremental(Protocol):
    """New classes in each experience; the task of a test image is not revealed."""

    name = "class"
    new_classes = True


class TaskIncremental(Protocol):
    """New classes in each experience; a test image is classified among the classes of its own experience."""

    name = "task"
    new_classes = True
    tells_task = True


class BaseToNew(TaskIncremental):
    """Half of the classes are learned; both halves are tested, each among its own classes."""

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """Accuracy on base and new classes, and their harmonic mean."""
        return metrics.base_to_new(s.correct, s.total)


class Targets(Protocol):
    """A labelled source, and several unlabelled targets, one after another."""

    name = "targets"
    has_target = True


class Pair(Targets):
    """A labelled source and an unlabelled target, learned together; tested on target, target test and source test."""

    name = "pair"
    counts_tasks = False
    draws_target = True

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """The metrics of adaptation."""
        return metrics.adaptation(s.correct, s.total, s.has_baseline_row, s.confusion, scores_unseen)


class Online(Protocol):
    """One stream without boundaries; each class is a test experience, and is tested once its images have come."""

    name = "no boundaries"
    new_classes = True
    counts_tasks = False
    only_seen = True

    def tested_after(self, index: int, tests: Sequence[Experience], scores_unseen: bool) -> Sequence[Experience]:
        """Every class; the loop leaves out those that have not come."""
        return tests

    def tests_ahead(self, scores_unseen: bool) -> bool:
        """Never: no class has come."""
        return False

    def measures(self, s: State, scores_unseen: bool) -> metrics.Measures:
        """The accuracy at the end, and its mean over the stream."""
        return metrics.online(s.correct, [row["correct"] for row in s.anytime], s.total)


PROTOCOLS: dict[str, Protocol] = {
    each.name: each for each in (ClassIncremental(), Protocol(), TaskIncremental(), Pair(), Targets())
}


def protocol(named: str | Protocol) -> Protocol:
    """The protocol with a name; an object is returned unchanged. Raises RequestError for an unknown name."""
    if isinstance(named, Protocol):
        return named
    if named not in PROTOCOLS:
        raise unknown("protocol", named, PROTOCOLS)
    return PROTOCOLS[named]
