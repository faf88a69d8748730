"""How many glyphs are drawn a second, of all domains and of each: ``python tests/benchmarks/glyphs.py``."""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from clsim.data import glyphs


def rate(domains: NDArray[np.int64], rounds: int) -> float:
    """Images a second, the best of the rounds."""
    count, best = len(domains), 0.0
    for start in range(rounds):
        began = time.perf_counter()
        glyphs.render(np.arange(count) % 100, domains, np.arange(count) + start * count, 0)
        best = max(best, count / (time.perf_counter() - began))
    return best


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    parser.add_argument("--images", type=int, default=2000, help="images of each domain (default 2000)")
    given = parser.parse_args()
    print(f"all domains  {rate(np.arange(3 * given.images) % 6, given.rounds):7,.0f} images/s")
    for domain, name in enumerate(glyphs.DOMAINS):
        print(f"{name:11}  {rate(np.full(given.images, domain), given.rounds):7,.0f}")


if __name__ == "__main__":
    main()
