"""Measures against matrices worked by hand, and against Avalanche's own classes where the definitions meet."""

import math

import numpy as np
import pytest

from clsim import metrics
from clsim.metrics import accuracy_matrix, mean_and_interval, measures

NAMES = [
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "sample_accuracy",
]

# class protocol, three experiences of unequal size; R = [[.9], [.5, .8], [.6, .4, .7]]
CLASS_CORRECT = [[9, None, None], [5, 16, None], [6, 8, 28]]
CLASS_TOTAL = [10, 20, 40]

# domain protocol with a row before training, ten images each
DOMAIN_CORRECT = [[1, 2, 1], [8, 3, 2], [6, 9, 4], [9, 7, 10]]
DOMAIN_TOTAL = [10, 10, 10]


def test_class_protocol():
    found = measures(CLASS_CORRECT, CLASS_TOTAL)
    assert found.values == {
        "average_accuracy": pytest.approx((0.6 + 0.4 + 0.7) / 3),
        "average_incremental_accuracy": pytest.approx((0.9 + 0.65 + 1.7 / 3) / 3),
        "forgetting": pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2),
        "backward_transfer": pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2),
        "forward_transfer": None,
        "learning_accuracy": pytest.approx((0.9 + 0.8 + 0.7) / 3),
        "sample_accuracy": pytest.approx((6 + 8 + 28) / 70),
    }
    assert list(found.values) == NAMES
    assert found.notes == {"forward_transfer": "experiences are not tested before they are learned"}


def test_domain_protocol_with_a_row_before_training():
    found = measures(DOMAIN_CORRECT, DOMAIN_TOTAL, before=True)
    assert found.values == {
        "average_accuracy": pytest.approx(2.6 / 3),
        # A_2 leaves out the third domain, tested but not yet learned
        "average_incremental_accuracy": pytest.approx((0.8 + 0.75 + 2.6 / 3) / 3),
        "forgetting": pytest.approx(((0.8 - 0.9) + (0.9 - 0.7)) / 2),
        "backward_transfer": pytest.approx(((0.9 - 0.8) + (0.7 - 0.9)) / 2),
        "forward_transfer": pytest.approx(((0.3 - 0.2) + (0.4 - 0.1)) / 2),
        "learning_accuracy": pytest.approx((0.8 + 0.9 + 1.0) / 3),
        "sample_accuracy": pytest.approx(26 / 30),
    }
    assert found.notes == {}


def test_without_a_row_before_training_there_is_no_baseline():
    found = measures(DOMAIN_CORRECT[1:], DOMAIN_TOTAL)
    assert found.values["forward_transfer"] is None
    assert found.notes == {"forward_transfer": "not tested before training"}


def test_forgetting_takes_the_best_earlier_accuracy():
    # the first experience is at its best after the second: 0.5, 0.8, 0.6
    found = measures([[5, None, None], [8, 9, None], [6, 7, 4]], [10, 10, 10])
    assert found.values["forgetting"] == pytest.approx(((0.8 - 0.6) + (0.9 - 0.7)) / 2)
    assert found.values["backward_transfer"] == pytest.approx(((0.6 - 0.5) + (0.7 - 0.9)) / 2)


def test_forgetting_passes_over_cells_never_evaluated():
    found = measures([[5, None, None], [None, 9, None], [4, 7, 4]], [10, 10, 10])
    assert found.values["forgetting"] == pytest.approx(((0.5 - 0.4) + (0.9 - 0.7)) / 2)
    assert found.values["average_incremental_accuracy"] is None


def test_the_row_before_training_takes_no_part_in_forgetting():
    found = measures([[9, 9], [5, 1], [4, 8]], [10, 10], before=True)
    assert found.values["forgetting"] == pytest.approx(0.5 - 0.4)


def test_forgetting_of_what_was_classified_better_before_it_was_learned_is_reported_both_ways():
    # zero-shot on the third: 0.9, then 0.6 once it was learned, then 0.5; Chaudhry's maximum is 0.9, since learned 0.6
    correct = [[2, 5, 9, 1], [8, 6, 9, 1], [7, 6, 8, 1], [7, 5, 6, 1], [7, 5, 5, 8]]
    found = measures(correct, [10] * 4, before=True)
    assert found.values["forgetting"] == pytest.approx(((0.8 - 0.7) + (0.6 - 0.5) + (0.9 - 0.5)) / 3)
    assert found.values["forgetting_since_learned"] == pytest.approx(((0.8 - 0.7) + (0.6 - 0.5) + (0.6 - 0.5)) / 3)
    # the row before any learning has no part in either
    again = measures([[10, 10, 10, 10], *correct[1:]], [10] * 4, before=True)
    assert again.values["forgetting"] == found.values["forgetting"]
    assert again.values["forgetting_since_learned"] == found.values["forgetting_since_learned"]
    assert "forgetting_since_learned" not in measures(DOMAIN_CORRECT, DOMAIN_TOTAL, before=True).values, (
        "they are equal"
    )
    assert "forgetting_since_learned" not in measures(correct[:3], [10] * 4, before=True).values


@pytest.mark.parametrize(
    ("correct", "total", "half"),
    [
        # p = 0.4 of 200: 1.96 sqrt(0.4 * 0.6 / 200)
        ([50, 30], [100, 100], 0.067896),
        # 2000 images, 7.4 %: what 20 test images for each of 100 classes add to `linear`
        ([148], [2000], 0.011473),
        ([74, 74], [1000, 1000], 0.011473),
        # a small experience weighs as much as a large one: p = 0.5, 1/n = (1/10 + 1/90) / 4
        ([5, 45], [10, 90], 0.163333),
        ([5, None], [10, 90], 0.309903),
        ([10], [10], 0.0),
    ],
)
def test_the_interval_of_finite_test_sets(correct, total, half):
    assert metrics.test_set_interval(correct, total) == pytest.approx(half, abs=1e-6)


def test_no_interval_without_counts():
    assert metrics.test_set_interval([None], [10]) is None


def test_joint():
    found = measures([[None, None], [7, 12]], [10, 20])
    assert {name for name, value in found.values.items() if value is not None} == {
        "average_accuracy",
        "sample_accuracy",
    }
    assert found.values["average_accuracy"] == pytest.approx(0.65)
    assert found.values["sample_accuracy"] == pytest.approx(19 / 30)
    assert found.notes["forgetting"] == "not tested after each experience on all that were learned"
    assert set(found.notes) == set(NAMES) - {"average_accuracy", "sample_accuracy"}


def test_joint_before_its_only_row():
    found = measures([[1, 1], [None, None]], [10, 20], before=True)
    assert found.values == dict.fromkeys(NAMES)
    assert found.notes["average_accuracy"] == "not tested on every experience learned"
    assert found.notes["forgetting"] == "only one experience has been learned so far"


def test_one_experience():
    found = measures([[1], [7]], [10], before=True)
    for name in ("average_accuracy", "average_incremental_accuracy", "learning_accuracy", "sample_accuracy"):
        assert found.values[name] == pytest.approx(0.7)
    assert found.notes == dict.fromkeys(
        ("forgetting", "backward_transfer", "forward_transfer"), "there is only one experience"
    )


def test_mid_run():
    found = measures(DOMAIN_CORRECT[:3], DOMAIN_TOTAL, before=True)
    assert found.values == {
        "average_accuracy": pytest.approx(0.75),
        "average_incremental_accuracy": pytest.approx((0.8 + 0.75) / 2),
        "forgetting": pytest.approx(0.8 - 0.6),
        "backward_transfer": pytest.approx(0.6 - 0.8),
        "forward_transfer": pytest.approx(0.3 - 0.2),
        "learning_accuracy": pytest.approx(0.85),
        "sample_accuracy": pytest.approx(0.75),
    }


def test_after_the_first_experience():
    found = measures(CLASS_CORRECT[:1], CLASS_TOTAL)
    assert found.values["average_accuracy"] == pytest.approx(0.9)
    assert found.notes["forgetting"] == "only one experience has been learned so far"


@pytest.mark.parametrize("correct", [[], [[1, 2, 1]]])
def test_nothing_learned_yet(correct):
    found = measures(correct, DOMAIN_TOTAL, before=True)
    assert found.values == dict.fromkeys(NAMES)
    assert found.notes == dict.fromkeys(NAMES, "no experience has been learned yet")


def test_accuracy_matrix():
    matrix = accuracy_matrix([[3, None], [1, 5]], [4, 5])
    np.testing.assert_array_equal(matrix, [[0.75, math.nan], [0.25, 1.0]])
    assert accuracy_matrix([], [4, 5]).shape == (0, 2)


@pytest.mark.parametrize(
    ("correct", "total", "message"),
    [
        ([[1]], [4, 5], "a row of 1 counts does not fit 2 experiences"),
        ([[5, 1]], [4, 5], "not between 0 and"),
        ([[-1, 1]], [4, 5], "not between 0 and"),
        ([[0, 1]], [0, 5], "needs test images"),
    ],
)
def test_counts_that_cannot_be(correct, total, message):
    with pytest.raises(ValueError, match=message):
        accuracy_matrix(correct, total)


def test_too_many_rows():
    with pytest.raises(ValueError, match="2 rows after training do not fit 1 experiences"):
        measures([[1], [1]], [4])


def test_mean_and_interval():
    # 1, 2, 3: s = 1, t(0.975; 2) = 4.30265 from a printed table
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert mean_and_interval([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_interval([])


@pytest.mark.filterwarnings("ignore")  # Avalanche's imports warn of what its dependencies will drop
def test_against_avalanche():
    """Avalanche subtracts the last accuracy from the one right after learning, with no maximum in between: its
    forgetting is ours where an experience is at its best when just learned, and minus its (and our) backward transfer
    always. Its forward transfer has the same definition as ours."""
    from avalanche.evaluation.metrics import BWT, Forgetting, ForwardTransfer

    correct = [[1, 2, 1, 0], [8, 3, 2, 1], [6, 9, 4, 2], [7, 7, 10, 3], [5, 8, 6, 9]]
    total = [10, 10, 10, 10]
    forgetting, backward, forward = Forgetting(), BWT(), ForwardTransfer()
    for j in range(4):
        forward.update(j, correct[0][j] / 10, initial=True)
        if j > 0:
            forward.update(j, correct[j][j] / 10)  # row j: after learning j experiences, the one before this
        if j < 3:
            for metric in (forgetting, backward):
                metric.update(j, correct[j + 1][j] / 10, initial=True)
                metric.update(j, correct[4][j] / 10)
    found = measures(correct, total, before=True).values
    assert found["forgetting"] == pytest.approx(np.mean(list(forgetting.result().values())))
    assert found["backward_transfer"] == pytest.approx(np.mean(list(backward.result().values())))
    assert found["forward_transfer"] == pytest.approx(np.mean(list(forward.result().values())))

    correct[3][0] = 9  # better after the third experience than when just learned: ours rises, Avalanche's does not
    assert measures(correct, total, before=True).values["forgetting"] == pytest.approx(
        np.mean(list(forgetting.result().values())) + 0.1 / 3
    )


def test_base_to_new_by_hand():
    found = metrics.base_to_new([[8, 3]], [10, 6])
    assert (found.values["base_accuracy"], found.values["new_accuracy"]) == (0.8, 0.5)
    assert found.values["harmonic_mean"] == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert found.values["average_accuracy"] is None and found.notes["average_accuracy"]
    assert metrics.base_to_new([[0, 0]], [10, 6]).values["harmonic_mean"] == 0
    blind = metrics.base_to_new([[8, None]], [10, 6])
    assert blind.values["base_accuracy"] == 0.8
    assert blind.values["new_accuracy"] is blind.values["harmonic_mean"] is None
    assert "not trained on" in blind.notes["new_accuracy"] and "not trained on" in blind.notes["harmonic_mean"]
    assert metrics.base_to_new([[1, 1], [8, 3]], [10, 6]).values["base_accuracy"] == 0.8, "after training"


def test_adaptation_by_hand():
    counts = np.array([[3, 1], [0, 2]])  # of class 0: 3 of 4 are right; of class 1: all
    found = metrics.adaptation([[3, 1, 4], [5, 2, 3]], [6, 4, 5], True, counts, True)
    assert found.values["target_accuracy"] == pytest.approx(5 / 6)
    assert found.values["target_class_mean"] == pytest.approx((0.75 + 1) / 2)
    assert found.values["target_test_accuracy"] == 0.5 and found.values["source_accuracy"] == 0.6
    assert found.values["adaptation_gain"] == pytest.approx(2 / 6)
    assert found.values["forgetting"] is None and found.notes["forgetting"]
    plain = metrics.adaptation([[5, 2, 3]], [6, 4, 5], False, counts, False)
    assert plain.values["adaptation_gain"] is None and "source_only" in plain.notes["adaptation_gain"]
    counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    found = metrics.adaptation([[5, 2, 3]], [6, 4, 5], False, counts, False)
    assert found.values["target_class_mean"] == pytest.approx(0.875), "a class without images takes no part"


def test_confusion_counts_by_class_and_prediction():
    found = metrics.confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 1]), 3)
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
