"""Protocols as objects: which tests, among which classes, measured how; and one of a user's own."""

import numpy as np
import pytest

from clsim.data.protocols import PROTOCOLS, BaseToNew, ClassIncremental, TaskIncremental, protocol
from clsim.data.streams import Benchmark, Experience
from clsim.errors import RequestError
from clsim.events import State

pytestmark = pytest.mark.usefixtures("without_pictures")

TESTS = ("first", "second", "third")  # stand for test experiences: protocols only count them


def state(correct, total, **given):
    return State(None, None, 0, correct=correct, total=total, **given)


@pytest.mark.parametrize(
    ("name", "scores_unseen", "after"),
    [
        ("class", False, [1, 2, 3]),
        ("class", True, [3, 3, 3]),
        ("task", False, [1, 2, 3]),
        ("task", True, [3, 3, 3]),
        ("domain", False, [3, 3, 3]),
        ("pair", False, [3, 3, 3]),
        ("targets", False, [3, 3, 3]),
    ],
)
def test_what_is_tested_after_each_experience(name, scores_unseen, after):
    rules = PROTOCOLS[name]
    assert [list(rules.tested_after(t, TESTS, scores_unseen)) for t in range(3)] == [list(TESTS[:n]) for n in after]
    assert rules.tests_ahead(scores_unseen) == (after[0] == 3)


@pytest.mark.parametrize("name", ["class", "domain", "pair", "targets"])
def test_images_are_classified_among_all_classes_learned(name):
    assert PROTOCOLS[name].competing((2, 3), (0, 1, 2, 3)) == (0, 1, 2, 3)
    assert not PROTOCOLS[name].tells_task


@pytest.mark.parametrize("rules", [TaskIncremental(), BaseToNew()])
def test_images_whose_task_is_known_are_classified_among_its_classes(rules):
    assert rules.competing((2, 3), (0, 1, 2, 3)) == (2, 3)
    assert rules.tells_task and rules.name == "task"


def test_each_protocol_is_found_by_the_name_it_writes_into_files():
    assert {name: rules.name for name, rules in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert protocol("class") is PROTOCOLS["class"]
    own = ClassIncremental()
    assert protocol(own) is own
    with pytest.raises(RequestError, match="did you mean 'domain'"):
        protocol("domains")


def test_only_a_pair_counts_confusion_and_only_of_the_target():
    assert [PROTOCOLS["pair"].counts_confusion(column) for column in range(3)] == [True, False, False]
    assert not any(PROTOCOLS[name].counts_confusion(0) for name in ("class", "task", "domain", "targets"))
    assert [name for name in PROTOCOLS if PROTOCOLS[name].has_target] == ["pair", "targets"]


def test_measures_of_a_stream_by_hand():
    s = state([[8, None], [6, 9]], [10, 10])
    found = PROTOCOLS["class"].measures(s, False)
    assert found.values["average_accuracy"] == pytest.approx(0.75)
    assert found.values["forgetting"] == pytest.approx(0.2)
    before = PROTOCOLS["domain"].measures(state([[1, 2], [8, 4], [6, 9]], [10, 10], has_baseline_row=True), False)
    assert before.values["forward_transfer"] == pytest.approx(0.4 - 0.2)


def test_measures_of_base_to_new_and_of_a_pair_by_hand():
    found = BaseToNew().measures(state([[8, 3]], [10, 6]), True)
    assert (found.values["base_accuracy"], found.values["new_accuracy"]) == (0.8, 0.5)
    counts = np.array([[3, 1], [0, 2]])
    pair = state([[3, 1, 4], [5, 2, 3]], [6, 4, 5], has_baseline_row=True, confusion=counts)
    found = PROTOCOLS["pair"].measures(pair, True)
    assert found.values["target_accuracy"] == pytest.approx(5 / 6)
    assert found.values["target_class_mean"] == pytest.approx((0.75 + 1) / 2)


def test_strategies_are_told_what_the_protocol_reveals(make_table):
    table = make_table(2, 3)
    stream = (Experience(0, table, np.arange(6), (0, 1), "all"),)
    for name, told in (("class", (False, False)), ("task", (True, False)), ("pair", (False, True))):
        info = Benchmark(stream, stream, name).info
        assert (info.protocol, info.tells_task, info.has_target) == (name, *told)


# one of a user's own

LATEST = '''
"""Only the newest experience is tested, among the classes of even number and its own."""

from dataclasses import dataclass, replace

from clsim.data.protocols import Protocol
from clsim.metrics import Measures
from toy import Toy


class Latest(Protocol):
    """Tests the newest experience."""

    name = "latest"
    new_classes = True

    def tested_after(self, index, tests, scores_unseen):
        return tests[index : index + 1]

    def competing(self, own, others):
        return tuple(sorted({*own, *(c for c in others if c % 2 == 0)}))

    def measures(self, s, scores_unseen):
        newest = [count for count in s.correct[-1] if count is not None] if s.correct else []
        return Measures({"newest": sum(newest) / 8}, {})


@dataclass(kw_only=True)
class Newest(Toy):
    """Toy under a protocol of its own."""

    def build(self, data):
        return replace(super().build(data), protocol=Latest())
'''


def test_a_users_protocol_decides_without_a_change_of_the_loop(tmp_path, broken_off, finished, same_run):
    (tmp_path / "newest.py").write_text(LATEST)
    scenario = f"{tmp_path}/newest.py:Newest"
    whole = finished("linear", tmp_path / "whole", on=scenario)
    assert [[cell is not None for cell in row] for row in whole.matrix["correct"]] == [
        [t == j for j in range(3)] for t in range(3)
    ]
    assert whole.summary["protocol"] == "latest"
    assert whole.metrics == {"newest": whole.matrix["correct"][2][2] / 8}
    broken_off(2, lambda: finished("linear", tmp_path / "broken", on=scenario))
    same_run(finished("linear", tmp_path / "broken", on=scenario), whole)
    images = np.zeros((1, 3, 8, 8), np.uint8)
    assert whole.predict(images).shape == (1,)
