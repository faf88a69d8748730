"""Validation images come from the training stream alone, spread evenly over every class."""

import numpy as np
import pytest

from clsim.data.streams import ClassScenario, class_incremental
from clsim.data.validation import validated
from clsim.errors import RequestError


@pytest.fixture
def stream(make_table):
    """Six classes of ten training and four test images, two in each experience."""

    def make(per_class: int = 10, protocol: str = "class"):
        train, test = make_table(6, per_class), make_table(6, 4, seed=1)
        return class_incremental(ClassScenario(order_seed=-1), train, test, 2, protocol)

    return make


def test_a_fifth_of_each_class_is_held_back(stream):
    whole = stream()
    made = validated(whole, "all")
    assert len(made.train_stream) == len(made.test_stream) == 3
    for before, train, held in zip(whole.train_stream, made.train_stream, made.test_stream, strict=True):
        assert np.array_equal(np.union1d(train.rows, held.rows), before.rows)
        assert np.bincount(held.labels)[list(before.classes)].tolist() == [2, 2]
        assert np.bincount(train.labels)[list(before.classes)].tolist() == [8, 8]
        assert held.classes == before.classes
    first = made.test_stream[0].rows[:2].tolist()
    assert first == [4, 9], "spread over the class, not its first images"


def test_no_test_image_is_left(stream):
    whole = stream()
    made = validated(whole, 2)
    assert [each.name for each in made.train_stream] == [each.name for each in whole.train_stream[:2]]
    assert all(each.table is whole.train_table for each in made.test_stream)
    assert made.info.num_experiences == 2
    assert made.info.class_names == whole.info.class_names


def test_a_class_of_two_has_one_of_each_and_a_class_of_one_is_only_trained(stream, make_table):
    made = validated(stream(2), "all")
    assert [len(each.rows) for each in made.train_stream] == [len(each.rows) for each in made.test_stream] == [2, 2, 2]
    with pytest.raises(RequestError, match="'classes 0 1' has one image of each class: none can be kept"):
        validated(stream(1), "all")


def test_the_protocol_keeps_its_rules(stream):
    made = validated(stream(protocol="task"), "all")
    assert made.rules.name == "task"
    assert made.rules.tells_task
    assert made.rules.tested_after(0, made.test_stream, scores_unseen=False) == made.test_stream[:1]
    assert [each.task_label for each in made.test_stream] == [0, 1, 2]


def test_labels_of_a_target_are_not_used(benchmarks_of_a_pair):
    whole = benchmarks_of_a_pair
    made = validated(whole, "all")
    source, target = whole.train_stream[0], whole.train_stream[0].unlabelled
    assert np.array_equal(made.train_stream[0].unlabelled, target)
    assert set(made.test_stream[0].rows) <= set(source.rows)
    assert not set(made.test_stream[0].rows) & set(target)
    assert len(made.test_stream) == 1
    assert made.rules.has_target
    assert not made.rules.draws_target


@pytest.fixture
def benchmarks_of_a_pair(tmp_path):
    """glyph_pair with few images."""
    from clsim.data.streams import DataAccess
    from scenarios.glyph_pair import GlyphPair

    return GlyphPair(train_per_class=5, test_per_class=2).build(DataAccess(None, tmp_path, 32))
