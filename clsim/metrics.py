"""Counts of correct predictions -> every measure of continual learning. Needs only NumPy.

R[t, j] is the accuracy on the test images of experience j after learning experiences 1 to t, of T. Counts have one row
for each t, with one cell for each j; a cell that was never evaluated is None. If the first row was measured before any
training (b in the definitions), callers pass `before=True`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = Sequence[Sequence[int | None]]

NOT_TESTED = "not tested on every experience learned"
NOT_EACH_TIME = "not tested after each experience on all that were learned"
NOT_AHEAD = "experiences are not tested before they are learned"
NO_BASELINE = "not tested before training"

SINCE_LEARNED = "forgetting_since_learned"  # only where it differs from forgetting

# reasons for a mean over terms that were never measured; if there are no terms, the reason is too few experiences
REASONS = {
    "average_accuracy": NOT_TESTED,
    "average_incremental_accuracy": NOT_EACH_TIME,
    "forgetting": NOT_EACH_TIME,
    "backward_transfer": NOT_EACH_TIME,
    "forward_transfer": NOT_AHEAD,
    "learning_accuracy": NOT_EACH_TIME,
    "sample_accuracy": NOT_TESTED,
}


@dataclass(frozen=True)
class Measures:
    """Each measure as a fraction (a difference of fractions for the transfers), or None with its reason in `notes`."""

    values: dict[str, float | None]
    notes: dict[str, str]


def accuracy_matrix(correct: Counts, total: Sequence[int]) -> NDArray[np.float64]:
    """(rows, T) counts -> (rows, T) accuracies in [0, 1], NaN where nothing was evaluated.

    Raises ValueError for rows that are not T long, for counts outside 0 to total, and for an empty test set.
    """
    if any(size < 1 for size in total):
        raise ValueError(f"every experience needs test images; there are {list(total)}")
    for row in correct:
        if len(row) != len(total):
            raise ValueError(f"a row of {len(row)} counts does not fit {len(total)} experiences")
    sizes = np.array(total, dtype=np.float64)
    counts = np.array(correct, dtype=np.float64).reshape(len(correct), len(total))  # None becomes NaN
    wrong = np.flatnonzero(((counts < 0) | (counts > sizes)).any(axis=1))
    if len(wrong):
        raise ValueError(f"counts {list(correct[wrong[0]])} are not between 0 and {list(total)}")
    return counts / sizes


def measures(correct: Counts, total: Sequence[int], before: bool = False) -> Measures:
    """Every measure after the last row, in the middle of a run or at its end.

    `correct` has a row for each experience learned, after one for the untrained learner if `before`. With t learned:

    - average_accuracy A_t: mean of R[t, j] over j <= t
    - average_incremental_accuracy: mean of A_1 to A_t
    - forgetting: mean over j < t of f_j = max over l in {1, ..., t-1} of R[l, j], minus R[t, j] (Chaudhry et al.
      2018, arXiv:1801.10112). The maximum ignores cells that were never evaluated. As in that definition, l also takes
      the rows from before j was learned, if j was tested then; the row from before all learning, b, never counts
    - forgetting_since_learned: the same with l in {j, ..., t-1}, without the rows from before j was learned. It is
      there only if it differs from forgetting: where an experience was classified better before it was learned
    - backward_transfer: mean over j < t of R[t, j] - R[j, j] (Lopez-Paz and Ranzato 2017, arXiv:1706.08840)
    - forward_transfer: mean over 1 < j <= t of R[j-1, j] - b[j] (the same paper)
    - learning_accuracy: mean over j <= t of R[j, j]
    - sample_accuracy: A_t with equal weight for every image, not for every experience

    A measure is None if a cell that it needs was never evaluated. Raises ValueError as `accuracy_matrix` does, and
    for more rows than experiences.
    """
    matrix = accuracy_matrix(correct, total)
    baseline = matrix[0] if before and len(matrix) else np.full(len(total), np.nan)
    rows = matrix[1:] if before else matrix
    learned = len(rows)
    if learned > len(total):
        raise ValueError(f"{learned} rows after training do not fit {len(total)} experiences")
    if not learned:
        return Measures(dict.fromkeys(REASONS), dict.fromkeys(REASONS, "no experience has been learned yet"))
    notes = REASONS | {SINCE_LEARNED: NOT_EACH_TIME}
    if not np.isnan(rows.diagonal(1)[: learned - 1]).any():
        notes["forward_transfer"] = NO_BASELINE
    few = "there is only one experience" if len(total) == 1 else "only one experience has been learned so far"
    values: dict[str, float | None] = {}
    for name, terms in _terms(rows, baseline, np.asarray(total, dtype=np.float64)).items():
        mean = float(np.mean(terms)) if len(terms) else np.nan
        values[name] = None if np.isnan(mean) else mean
        if not len(terms):
            notes[name] = few
    return Measures(values, {name: note for name, note in notes.items() if values.get(name, 0) is None})


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(n,) labels and predictions -> (K,K) counts; rows are true classes, columns predicted ones."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


ONE_STEP = "source and target are learned at once; see target_accuracy"
NO_ZERO_SHOT = "this classifier cannot classify before training; compare it with a source_only run"


def adaptation(
    correct: Counts, total: Sequence[int], before: bool, counts: NDArray[np.int64] | None, text: bool
) -> Measures:
    """Measures of unsupervised adaptation, from columns target, target test and source test.

    - target_accuracy: on the target images used in training without their labels (the papers report this)
    - target_class_mean: the same, with equal weight for every class; from the (K,K) confusion `counts`
    - target_test_accuracy, source_accuracy: on held-out images of the target and of the source
    - adaptation_gain: target_accuracy minus that of the row before any training. With `text` (images are classified
      by class names) that row is zero-shot classification

    Measures of streams are None. Raises ValueError as `accuracy_matrix` does.
    """
    last = accuracy_matrix(correct, total)
    values: dict[str, float | None] = dict.fromkeys(REASONS)
    notes = dict.fromkeys(REASONS, ONE_STEP)
    names = ("target_accuracy", "target_test_accuracy", "source_accuracy")
    values |= {name: float(value) for name, value in zip(names, last[-1], strict=True)}
    values["target_class_mean"] = None
    if counts is not None:
        there = counts.sum(axis=1)
        values["target_class_mean"] = float((counts.diagonal()[there > 0] / there[there > 0]).mean())
    else:
        notes["target_class_mean"] = "the target was not tested"
    values["adaptation_gain"] = None
    if before and text:
        values["adaptation_gain"] = float(last[-1, 0] - last[0, 0])
    else:
        notes["adaptation_gain"] = NO_ZERO_SHOT
    return Measures(values, notes)


ONE_STREAM = "the stream has no experiences; see a_last and a_auc"


def online(correct: Counts, inside: Counts, total: Sequence[int]) -> Measures:
    """Measures of a stream without boundaries, whose columns are classes; a cell is None until its class has come.

    - a_last: the share of correct test images at the end, of all classes that have come
    - a_auc: the mean of that share over the evaluations `inside` the stream and the last one (Koh et al. 2022,
      arXiv:2110.10031, eq. 1, with evaluations at equal distances)

    Measures of experiences are None. Raises ValueError as `accuracy_matrix` does.
    """
    values: dict[str, float | None] = dict.fromkeys(REASONS)
    notes = dict.fromkeys(REASONS, ONE_STREAM)
    shares = []
    for row in (*inside, *correct[-1:]):
        accuracy_matrix([row], total)  # refuses counts that cannot be
        known = [(count, size) for count, size in zip(row, total, strict=True) if count is not None]
        shares.append(sum(count for count, _ in known) / sum(size for _, size in known))
    values |= {"a_last": shares[-1] if correct else None, "a_auc": float(np.mean(shares)) if correct else None}
    if not correct:
        notes |= dict.fromkeys(("a_last", "a_auc"), "the stream has not ended")
    return Measures(values, notes)


BASE_AND_NEW = "base classes are learned at once; see base_accuracy"
NO_NEW = "this classifier cannot classify among classes that it was not trained on"


def base_to_new(correct: Counts, total: Sequence[int]) -> Measures:
    """Measures of learning only the base classes, from columns base and new, each classified among its own classes.

    - base_accuracy, new_accuracy
    - harmonic_mean of the two: 2 b n / (b + n) (Zhou et al. 2022, arXiv:2203.05557, section 4.1); 0 if both are

    Measures of streams are None. If new classes were not tested, measures that need them are None. Raises ValueError
    as `accuracy_matrix` does.
    """
    base, new = (float(value) for value in accuracy_matrix(correct, total)[-1])
    values: dict[str, float | None] = dict.fromkeys(REASONS)
    notes = dict.fromkeys(REASONS, BASE_AND_NEW)
    values |= {"base_accuracy": base, "new_accuracy": None, "harmonic_mean": None}
    if np.isnan(new):
        return Measures(values, notes | dict.fromkeys(("new_accuracy", "harmonic_mean"), NO_NEW))
    values |= {"new_accuracy": new, "harmonic_mean": 2 * base * new / (base + new) if base + new else 0.0}
    return Measures(values, notes)


def _terms(
    rows: NDArray[np.float64], baseline: NDArray[np.float64], total: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    """The terms whose mean each measure is, from the (t, T) accuracies after training."""
    learned = len(rows)
    square = rows[:, :learned]
    last, diagonal = square[-1], square.diagonal()
    learned_by_then = np.where(np.tri(learned, dtype=bool), square, np.nan)
    # fmax ignores NaN; the last column is the experience just learned, which has no part in forgetting
    best, since = (np.fmax.reduce(each[:-1, :-1], axis=0, initial=np.nan) for each in (square, learned_by_then))
    terms = {
        "average_accuracy": last,
        "average_incremental_accuracy": np.array([square[t, : t + 1].mean() for t in range(learned)]),
        "forgetting": best - last[:-1],
        "backward_transfer": (last - diagonal)[:-1],
        "forward_transfer": rows.diagonal(1)[: learned - 1] - baseline[1:learned],
        "learning_accuracy": diagonal,
        "sample_accuracy": np.atleast_1d(np.average(last, weights=total[:learned])),
    }
    return terms if np.array_equal(best, since, equal_nan=True) else terms | {SINCE_LEARNED: since - last[:-1]}


def binomial_interval(correct: Sequence[int | None], total: Sequence[int]) -> float | None:
    """Half the width of the binomial 95 % interval that finite test sets give an average accuracy, from counts.

    It is 1.96 sqrt(p (1 - p) / n) for the mean p of the T accuracies and n test images in T experiences of equal size;
    in general 1 / n is the mean of the 1 / n_j, divided by T, because small experiences have the same weight. None if
    nothing was evaluated.
    """
    known = [(count, size) for count, size in zip(correct, total, strict=True) if count is not None]
    if not known:
        return None
    mean = sum(count / size for count, size in known) / len(known)
    inverse = sum(1 / size for _, size in known) / len(known) ** 2
    return float(1.96 * np.sqrt(mean * (1 - mean) * inverse))


def mean_and_interval(values: ArrayLike) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval by Student's t; None for a single value.

    Raises ValueError if there are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("there is no mean of no values")
    if sample.size == 1:
        return float(sample.mean()), None
    from scipy.special import stdtrit  # Student's t; late, and not from scipy.stats, which takes a second to import

    error = sample.std(ddof=1) / np.sqrt(sample.size)
    return float(sample.mean()), float(stdtrit(sample.size - 1, 0.975) * error)
