"""Streams: every class and domain is dealt out once, in an order of its own, and requests that do not fit say why."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clsim.data.streams import (
    ClassScenario,
    DataAccess,
    Scenario,
    class_incremental,
    class_order,
    domain_incremental,
    first_of_each_class,
    matching_name,
    merged,
    same_name,
)
from clsim.errors import RequestError


def with_domains(table, names):
    """The table's rows dealt out to domains, in an ImageTable's order: by domain, then class."""
    domains = np.arange(len(table)) % len(names)
    order = np.lexsort((table.labels, domains))
    return replace(
        table,
        images=table.images[order],
        labels=table.labels[order],
        domains=domains[order],
        domain_names=tuple(names),
    )


def test_class_order_has_a_seed_of_its_own():
    assert class_order(10, 3).tolist() == class_order(10, 3).tolist()
    assert class_order(10, 3).tolist() != class_order(10, 4).tolist()
    assert sorted(class_order(10, 3).tolist()) == list(range(10))
    assert class_order(10, -1).tolist() == list(range(10))
    with pytest.raises(RequestError, match=r"order_seed is -1 .* not -2"):
        class_order(10, -2)


def test_pilots_class_order_is_that_of_numpys_legacy_generator():
    order = class_order(100, 0, "pilot1993").tolist()
    assert order[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76], "as PILOT, iCaRL and DER print it for CIFAR-100"
    assert sorted(order) == list(range(100))
    assert class_order(10, 0, "pilot1993").tolist() == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]


def test_class_order_leaves_global_random_states_alone():
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    class_order(100, 0)
    class_order(100, 0, "pilot1993")
    assert (np.random.rand(), torch.rand(1)) == expected


def test_every_class_and_row_comes_once(make_table):
    train, test = make_table(6, 10), make_table(6, 4, seed=1)
    benchmark = class_incremental(Scenario(order_seed=1), train, test, 2)
    classes = [c for experience in benchmark.train_stream for c in experience.classes]
    assert sorted(classes) == list(range(6))
    for stream, table in ((benchmark.train_stream, train), (benchmark.test_stream, test)):
        rows = np.concatenate([experience.rows for experience in stream])
        assert sorted(rows.tolist()) == list(range(len(table)))
        for index, experience in enumerate(stream):
            assert experience.index == index
            assert set(experience.labels.tolist()) == set(experience.classes)
            assert experience.classes == tuple(sorted(experience.classes))
            assert (np.diff(experience.rows) > 0).all()
            assert experience.table is table
            assert experience.task_label is None
    pairs = zip(benchmark.train_stream, benchmark.test_stream, strict=True)
    assert all(train.classes == test.classes for train, test in pairs)


def test_given_order_and_names(make_table):
    benchmark = class_incremental(Scenario(order_seed=-1), make_table(), make_table(), 3)
    assert [e.classes for e in benchmark.train_stream] == [(0, 1, 2), (3, 4, 5)]
    assert [e.name for e in benchmark.train_stream] == ["classes 0-2", "classes 3-5"]
    groups = [[5, 0], [1, 2, 3, 4]]
    benchmark = class_incremental(Scenario(), make_table(), make_table(), 0, groups=groups, names=["a", "b"])
    assert [(e.name, e.classes) for e in benchmark.test_stream] == [("a", (0, 5)), ("b", (1, 2, 3, 4))]


def test_info_holds_names_and_protocol_only(make_table):
    info = class_incremental(Scenario(), make_table(4), make_table(4), 2, protocol="task", flip=False).info
    assert info.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert (info.num_classes, info.num_experiences, info.protocol, info.domain_names) == (4, 2, "task", ())


def test_the_task_label_is_there_in_the_task_protocol(make_table):
    benchmark = class_incremental(Scenario(), make_table(), make_table(), 2, protocol="task")
    assert [e.task_label for e in benchmark.test_stream] == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 4, 5, 7, -2])
def test_classes_that_do_not_divide(make_table, count):
    with pytest.raises(RequestError, match=f"classes_per_experience={count} does not divide 6 .* one of 1, 2, 3, 6"):
        class_incremental(Scenario(), make_table(), make_table(), count)


def test_the_first_of_a_hundred_classes_come_in_a_base_of_fifty(make_table):
    train, test = make_table(100, 2, size=4), make_table(100, 1, size=4)
    scenario = ClassScenario(base_classes=50, order="pilot1993")
    benchmark = class_incremental(scenario, train, test, 10)
    for stream, per_class in ((benchmark.train_stream, 2), (benchmark.test_stream, 1)):
        assert [len(e.classes) for e in stream] == [50, 10, 10, 10, 10, 10]
        assert [len(e.rows) for e in stream] == [per_class * len(e.classes) for e in stream]
        assert sorted(c for e in stream for c in e.classes) == list(range(100)), "each class in one experience"
    assert benchmark.train_stream[0].classes == tuple(sorted(class_order(100, 0, "pilot1993")[:50].tolist()))
    assert benchmark.info.num_experiences == 6


@pytest.mark.parametrize(
    ("base", "count", "expected"),
    [
        (None, 3, [(0, 1, 2), (3, 4, 5)]),
        (4, 2, [(0, 1, 2, 3), (4, 5)]),
        (4, 1, [(0, 1, 2, 3), (4,), (5,)]),
        (1, 5, [(0,), (1, 2, 3, 4, 5)]),
        (2, 2, [(0, 1), (2, 3), (4, 5)]),
        (6, 2, [(0, 1, 2, 3, 4, 5)]),
    ],
)
def test_base_classes_come_first_and_the_others_evenly(make_table, base, count, expected):
    scenario = ClassScenario(base_classes=base, order_seed=-1)
    assert [e.classes for e in class_incremental(scenario, make_table(), make_table(), count).train_stream] == expected


def test_base_classes_are_the_first_of_the_same_order(make_table):
    order = class_order(6, 7).tolist()
    benchmark = class_incremental(ClassScenario(base_classes=4, order_seed=7), make_table(), make_table(), 1)
    assert [e.classes for e in benchmark.test_stream] == [tuple(sorted(order[:4])), (order[4],), (order[5],)]
    without = class_incremental(ClassScenario(order_seed=7), make_table(), make_table(), 2)
    plain = class_incremental(Scenario(order_seed=7), make_table(), make_table(), 2)
    assert [e.classes for e in without.train_stream] == [e.classes for e in plain.train_stream]


@pytest.mark.parametrize(
    ("base", "count", "words"),
    [
        (4, 4, "classes_per_experience=4 does not divide the 2 classes that base_classes=4 leaves .* one of 1, 2 does"),
        (0, 2, "base_classes is 1 to 6, the number of classes, not 0"),
        (7, 2, "base_classes is 1 to 6, the number of classes, not 7"),
        (-1, 2, "not -1"),
        (2, 0, "classes_per_experience=0 does not divide"),
        (2, 5, "classes_per_experience=5 does not divide the 4 classes .* one of 1, 2, 4 does"),
    ],
)
def test_base_classes_that_do_not_fit(make_table, base, count, words):
    with pytest.raises(RequestError, match=words):
        class_incremental(ClassScenario(base_classes=base), make_table(), make_table(), count)


@pytest.mark.parametrize("field", ["base_classes", "order"])
def test_fields_of_a_class_order_are_refused_where_it_is_not_used(make_table, field):
    scenario = ClassScenario(**{field: {"base_classes": 2, "order": "pilot1993"}[field]})
    table = with_domains(make_table(), ["photo", "sketch"])
    with pytest.raises(RequestError, match=f"{field} is for streams in which new classes arrive; protocol=domain"):
        domain_incremental(scenario, table, table)
    with pytest.raises(RequestError, match=f"{field} .*; the classes of this stream's experiences are given"):
        class_incremental(scenario, make_table(2), make_table(2), 0, groups=[[1], [0]])


def test_a_fixed_order_refuses_a_seed_that_would_not_change_it():
    with pytest.raises(RequestError, match="order=pilot1993 is one fixed order, which order_seed=3 does not change"):
        ClassScenario(order="pilot1993", order_seed=3)
    with pytest.raises(RequestError, match="order_seed=-1 does not change"):
        ClassScenario(order="pilot1993", order_seed=-1)
    assert ClassScenario(order="pilot1993", order_seed=0).order == "pilot1993"


def test_a_cut_down_stream_has_the_first_rows_of_each_class(make_table):
    train, test = make_table(6, 30), make_table(6, 8)

    def rows(count):
        scenario = Scenario(train_per_class=count, test_per_class=3)
        return [e.rows for e in class_incremental(scenario, train, test, 2).train_stream]

    ten, twenty, all_of_them = rows(10), rows(20), rows(None)
    for few, more, every in zip(ten, twenty, all_of_them, strict=True):
        assert (len(few), len(more), len(every)) == (20, 40, 60)
        assert set(few) < set(more) < set(every)
        for label in set(train.labels[few].tolist()):
            first = np.flatnonzero(train.labels == label)
            assert few[train.labels[few] == label].tolist() == first[:10].tolist()
    benchmark = class_incremental(Scenario(train_per_class=10, test_per_class=3), train, test, 2)
    assert [len(e.rows) for e in benchmark.test_stream] == [6, 6, 6]


def test_asking_for_more_than_there_is_gives_all(make_table):
    table = make_table(3, 5)
    assert len(first_of_each_class(table, np.arange(15), 99)) == 15
    with pytest.raises(RequestError, match="at least 1, not 0"):
        first_of_each_class(table, np.arange(15), 0)


def test_the_first_of_each_class_in_each_domain(make_table):
    table = with_domains(make_table(3, 10), ["photo", "sketch"])
    rows = first_of_each_class(table, np.arange(30), 2)
    assert table.labels[rows].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert table.domains[rows].tolist() == [0] * 6 + [1] * 6
    one_class = with_domains(make_table(1, 10), ["photo", "sketch"])
    assert one_class.domains[first_of_each_class(one_class, np.arange(10), 2)].tolist() == [0, 0, 1, 1]


def test_a_class_without_images(make_table):
    train = make_table(4)
    kept = np.flatnonzero(train.labels != 2)
    test = replace(train, images=train.images[kept], labels=train.labels[kept])
    with pytest.raises(RequestError, match="no images of class 'class 2'"):
        class_incremental(Scenario(), train, test, 2)


def test_splits_must_mean_the_same_classes(make_table):
    train = make_table(4)
    with pytest.raises(RequestError, match="class 'bee' is in only one of them"):
        class_incremental(Scenario(), train, replace(train, class_names=(*train.class_names[:3], "bee")), 2)
    with pytest.raises(RequestError, match="class names are ordered differently"):
        class_incremental(Scenario(), train, replace(train, class_names=train.class_names[::-1]), 2)


def test_domains_come_one_after_the_other(make_table):
    train, test = (with_domains(make_table(3, n), ["sketch", "photo"]) for n in (20, 6))
    benchmark = domain_incremental(Scenario(train_per_class=4), train, test, flip=False)
    assert [e.name for e in benchmark.train_stream] == ["sketch", "photo"]
    assert [e.domain for e in benchmark.test_stream] == ["sketch", "photo"]
    assert [e.classes for e in benchmark.train_stream] == [(0, 1, 2)] * 2
    assert [len(e.rows) for e in benchmark.train_stream] == [12, 12]
    assert [len(e.rows) for e in benchmark.test_stream] == [9, 9]
    for index, experience in enumerate(benchmark.train_stream):
        assert (train.domains[experience.rows] == index).all()
    assert (benchmark.protocol, benchmark.flip) == ("domain", False)
    assert benchmark.info.domain_names == ("sketch", "photo")


def test_domains_that_are_not_there(make_table):
    with pytest.raises(RequestError, match="one domain; protocol=domain needs several"):
        domain_incremental(Scenario(), make_table(), make_table())
    table = with_domains(make_table(), ["photo", "sketch"])
    lacking = replace(table, domains=np.zeros_like(table.domains))
    with pytest.raises(RequestError, match="no images of domain 'sketch'"):
        domain_incremental(Scenario(), table, lacking)


def test_merged_is_the_whole_stream(make_table):
    stream = class_incremental(Scenario(), make_table(), make_table(), 2, protocol="task").train_stream
    whole = merged(stream)
    assert whole.rows.tolist() == list(range(60))
    assert whole.classes == (0, 1, 2, 3, 4, 5)
    assert (whole.index, whole.task_label) == (2, None)


def test_domain_names_match_without_regard_to_case_blanks_and_underscores():
    assert same_name("Real World", "real_world")
    assert not same_name("Real World", "Real Worlds")
    assert matching_name("domain", "REALWORLD", ["Art", "Real World"]) == "Real World"
    with pytest.raises(
        RequestError, match=r"no domain 'Clipard' \(did you mean 'Clipart'\?\); there are: Art, Clipart"
    ):
        matching_name("domain", "Clipard", ["Clipart", "Art"])


def test_a_tree_needs_a_folder(tmp_path):
    with pytest.raises(RequestError, match="no --data-dir is given"):
        DataAccess(None, tmp_path, 32).folder()
    with pytest.raises(RequestError, match="no such data directory"):
        DataAccess(tmp_path / "nowhere", tmp_path, 32).folder()
