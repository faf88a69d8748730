"""How OpenMP's threads wait for each other. It imports no torch: OpenMP reads its settings when torch loads it."""

import os

# Rounds of spinning before a waiting thread sleeps; 300,000 is libgomp's own choice. If another process has the core of
# one thread, the others spin for milliseconds at the end of every operation.
SPINS = 1000


def let_threads_sleep() -> None:
    """Let waiting threads sleep soon, unless the user's environment already says how they wait.

    It has an effect on torch's builds with GNU's OpenMP (Linux), if torch is not imported yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
