"""How many glyphs are drawn a second, in all and of each domain alone: ``python tests/benchmarks/glyphs.py``."""

import time

import numpy as np

from clsim.data import glyphs


def rate(domains: np.ndarray) -> float:
    """Images a second, the best of three rounds."""
    count, best = len(domains), 0.0
    for start in range(3):
        began = time.perf_counter()
        glyphs.render(np.arange(count) % 100, domains, np.arange(count) + start * count, 0)
        best = max(best, count / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    print(f"all domains  {rate(np.arange(6000) % 6):7,.0f} images/s")
    for domain, name in enumerate(glyphs.DOMAINS):
        print(f"{name:11}  {rate(np.full(2000, domain)):7,.0f}")
