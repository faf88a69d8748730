"""Streams without boundaries: when each image comes, what is tested meanwhile, and what is measured."""

import numpy as np
import pytest

from clsim import metrics, plugins
from clsim.data import online
from clsim.data.streams import DataAccess
from clsim.errors import RequestError

LABELS = np.repeat(np.arange(6), 20)
CLASSES = [3, 1, 5, 0, 2, 4]

pytestmark = pytest.mark.usefixtures("without_pictures")


def draw(seed=0):
    return np.random.default_rng(seed)


def orders():
    return {
        "groups": online.by_groups(LABELS, [[3, 1], [5, 0], [2, 4]], draw()),
        "gaussian": online.gaussian(LABELS, CLASSES, 0.1, draw()),
        "i_blurry": np.concatenate(online.i_blurry(LABELS, CLASSES, 3, 50, 10, draw())),
        "si_blurry": np.concatenate(online.si_blurry(LABELS, CLASSES, 3, 50, 10, draw())),
    }


@pytest.mark.parametrize("name", list(orders()))
def test_every_image_comes_once_and_the_order_is_random(name):
    order = orders()[name]
    assert sorted(order.tolist()) == list(range(len(LABELS)))
    assert (np.diff(order) < 0).any()


def test_groups_come_one_after_another():
    arriving = LABELS[orders()["groups"]].reshape(3, 40)
    assert [sorted(set(part.tolist())) for part in arriving] == [[1, 3], [0, 5], [2, 4]]


def test_the_images_of_a_class_come_around_its_time():
    order = online.gaussian(LABELS, CLASSES, 0.01, draw())
    places = np.empty(len(LABELS))
    places[order] = np.arange(len(LABELS)) / len(LABELS)
    times = [places[label == LABELS].mean() for label in CLASSES]
    np.testing.assert_allclose(times, (np.arange(6) + 0.5) / 6, atol=0.02)
    wide = online.gaussian(LABELS, CLASSES, 10.0, draw())
    assert len(set(LABELS[wide[:30]].tolist())) == 6, "the times hardly count"


def test_i_blurry_deals_classes_in_turn_and_spreads_a_share_of_the_blurry_ones():
    tasks = online.i_blurry(LABELS, CLASSES, 3, 50, 10, draw())
    counts = np.array([np.bincount(LABELS[task], minlength=6) for task in tasks])
    # classes 3, 1, 5 are in one task each; 0, 2, 4 have 18 of 20 images in their own, and one in each of the others
    assert counts.tolist() == [[18, 0, 1, 20, 1, 0], [1, 20, 18, 0, 1, 0], [1, 0, 1, 0, 18, 20]]


def test_i_blurry_without_blur_is_disjoint_and_with_one_task_is_one_stream():
    for task in online.i_blurry(LABELS, CLASSES, 3, 0, 0, draw()):
        assert sorted(np.bincount(LABELS[task], minlength=6).tolist()) == [0, 0, 0, 0, 20, 20]
    (whole,) = online.i_blurry(LABELS, CLASSES, 1, 50, 10, draw())
    assert len(whole) == 120


def test_si_blurry_keeps_disjoint_classes_together_and_moves_a_share_of_the_others():
    for seed in range(20):
        tasks = online.si_blurry(LABELS, CLASSES, 3, 50, 10, draw(seed))
        counts = np.array([np.bincount(LABELS[task], minlength=6) for task in tasks])
        alone = counts[:, [3, 1, 5]]
        assert ((alone == 0) | (alone == 20)).all()
        away = 60 - counts[:, [0, 2, 4]].max(axis=0).sum()
        assert away <= 6, "10 % of 60 images, of which some are dealt to the task that they came from"
    sizes = {tuple(map(len, online.si_blurry(LABELS, CLASSES, 3, 50, 10, draw(seed)))) for seed in range(20)}
    assert len(sizes) > 10, "tasks have random sizes"


def test_measures_by_hand():
    inside = [[1, None], [2, 1]]  # of 4 and 2 test images
    found = metrics.online([[3, 0]], inside, [4, 2])
    assert found.values["a_last"] == 3 / 6
    assert found.values["a_auc"] == pytest.approx((1 / 4 + 3 / 6 + 3 / 6) / 3)
    assert found.values["average_accuracy"] is None and found.notes["forgetting"].startswith("the stream has no exp")
    assert metrics.online([], inside, [4, 2]).values["a_auc"] is None


def test_one_stream_of_all_images_and_a_test_for_each_class(tmp_path):
    scenario = plugins.load("scenarios", "online")(train_per_class=20, test_per_class=5, schedule="disjoint", tasks=2)
    benchmark = scenario.build(DataAccess(None, tmp_path, 32))
    (stream,) = benchmark.train_stream
    assert stream.ordered and not stream.boundary and len(stream.rows) == 200
    first, second = (set(part.tolist()) for part in stream.labels.reshape(2, 100))
    assert len(first) == len(second) == 5 and not first & second
    assert [each.classes for each in benchmark.test_stream] == [(label,) for label in range(10)]
    assert benchmark.eval_every == 1000 and not benchmark.flip


def test_another_seed_is_another_stream(tmp_path):
    data = DataAccess(None, tmp_path, 32)
    streams = [
        plugins.load("scenarios", "online")(train_per_class=5, order_seed=seed)
        .build(data)
        .train_stream[0]
        .rows.tolist()
        for seed in (0, 0, 1)
    ]
    assert streams[0] == streams[1] != streams[2]


def test_a_run_is_tested_on_the_classes_that_have_come(tmp_path, finished):
    fields = {"schedule": "disjoint", "tasks": 5, "train_per_class": 10, "test_per_class": 4, "eval_every": 20}
    run = finished("er", tmp_path, fields, on="online", batch_size=10, memory=20)
    rows = run.matrix["anytime"]
    assert [row["images"] for row in rows] == [20, 40, 60, 80]
    assert [sum(count is not None for count in row["correct"]) for row in rows] == [2, 4, 6, 8]
    assert None not in run.matrix["correct"][-1] and len(run.matrix["correct"]) == 1
    shares = [sum(c for c in row["correct"] if c is not None) / (4 * (2 + 2 * i)) for i, row in enumerate(rows)]
    last = sum(run.matrix["correct"][-1]) / 40
    assert run.metrics["a_last"] == last
    assert run.metrics["a_auc"] == pytest.approx(np.mean([*shares, last]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"disjoint": 101}, "disjoint is a percentage, 0 to 100, not 101"),
        ({"tasks": 0}, "tasks and eval_every must be at least 1"),
        ({"width": 0.0}, "width must be above 0"),
        ({"image": "x"}, "image is for a table that is a path"),
    ],
)
def test_values_without_sense(fields, words):
    with pytest.raises(RequestError, match=words):
        plugins.load("scenarios", "online")(**fields)
