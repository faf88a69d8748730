"""Differences of two methods over the same seeds."""

from collections.abc import Mapping
from typing import NamedTuple

from clsim.metrics import mean_and_interval


class Difference(NamedTuple):
    """The mean of paired differences, and half the width of its 95 % interval; None with a single pair."""

    mean: float
    half: float | None
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether there is an interval and 0 is outside of it."""
        return self.half is not None and abs(self.mean) > self.half


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Seed -> value of a method and of a reference; the differences of the seeds that both have, by Student's t.

    None without such a seed. Runs with the same seed share the order of images and their crops, so the interval of
    their differences is often smaller than that of either mean.
    """
    seeds = [seed for seed in values if seed in reference]
    if not seeds:
        return None
    return Difference(*mean_and_interval([values[seed] - reference[seed] for seed in seeds]), len(seeds))
