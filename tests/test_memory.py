"""Rehearsal memories, and the parts that --with names."""

import numpy as np
import pytest
import torch

from clsim.data.streams import Scenario, class_incremental
from clsim.errors import RequestError
from clsim.events import State
from clsim.named_parts import named_part
from clsim.parts.memory import Reservoir


@pytest.fixture
def benchmark(make_table):
    table = make_table(num_classes=6, per_class=10)
    return class_incremental(Scenario(order_seed=-1), table, table, 2)


def offer(memory, benchmark, count):
    for t in range(count):
        memory.after_training_exp(State(torch.nn.Identity(), benchmark.info, 0, benchmark.train_stream[t], trained=t))


def test_holds_as_many_as_it_may_of_all_that_came(benchmark):
    memory = Reservoir(12)
    offer(memory, benchmark, 3)
    rows = memory.rows
    assert len(rows) == len(set(rows.tolist())) == 12
    assert memory.stored_bytes == 12 * 3 * 16 * 16


def test_every_image_has_the_same_chance(benchmark):
    counts = np.zeros(60)
    for seed in range(300):
        memory = Reservoir(12)
        for t, experience in enumerate(benchmark.train_stream):
            memory.after_training_exp(State(torch.nn.Identity(), benchmark.info, seed, experience, trained=t))
        counts[memory.rows] += 1
    # each count is binomial(300, 1/5): mean 60, standard deviation 6.9
    assert abs(counts[:20].mean() - 60) < 4 and abs(counts[40:].mean() - 60) < 4
    assert counts.min() > 30 and counts.max() < 90


def test_per_class_holds_the_same_number_of_each(benchmark):
    memory = Reservoir(3, per_class=True)
    offer(memory, benchmark, 2)
    labels = benchmark.train_table.labels[memory.rows]
    assert np.bincount(labels, minlength=6).tolist() == [3, 3, 3, 3, 0, 0]


def test_replays_as_many_as_the_stream_brings_and_only_earlier_images(benchmark):
    memory = Reservoir(8)
    s = State(torch.nn.Identity(), benchmark.info, 0, rows=np.arange(20, 25))
    memory.before_training_iteration(s)
    assert s.replay is None, "nothing was learned yet"
    offer(memory, benchmark, 1)
    memory.before_training_iteration(s)
    assert len(s.replay) == 5 and set(s.replay) <= set(benchmark.train_stream[0].rows)
    memory.before_training_iteration(s)
    assert len(s.replay) == 10, "a second memory adds to the first"


def test_state_round_trip(benchmark):
    memory, other = Reservoir(5, per_class=True), Reservoir(5, per_class=True)
    offer(memory, benchmark, 2)
    other.load(memory.state())
    assert other.rows.tolist() == memory.rows.tolist()
    third = benchmark.train_stream[2]
    for each in (memory, other):
        each.after_training_exp(State(torch.nn.Identity(), benchmark.info, 0, third, trained=2))
    assert other.rows.tolist() == memory.rows.tolist()


def test_named_parts():
    assert named_part("er:500").made.capacity == 500
    assert named_part("er").made.capacity == 500
    assert named_part("er_per_class:7").made.per_class
    for text, words in (
        ("err:5", "did you mean 'er'"),
        ("er:1:2", "er:1:2: write er:SIZE or er,size=VALUE"),
        ("er:x", "er:x: size must be a whole number, not 'x'"),
        ("er:0", "er:0: .*at least 1"),
        ("er,sise=5", r"er,sise=5: no field 'sise' \(did you mean 'size'\?\)"),
        ("er:5,size=5", "size is given twice"),
        ("er_per_class:5,per_class=false", "per_class is given twice"),
    ):
        with pytest.raises(RequestError, match=words):
            named_part(text)
