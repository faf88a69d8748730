"""What the settings of a process are worth: ``python tests/benchmarks/process_settings.py [--busy 2] [--rounds 3]``.

Images a second in training and in evaluation, l2p with vit_micro, with clsim's settings and without each of them, on
all threads and on one: how OpenMP's threads wait, freed memory that is kept, uninitialised memory that is not filled.
`--busy N` other processes use the processor meanwhile, as on a machine that people share. Each measurement has a
process of its own, because OpenMP reads its settings once; they take turns, and printed are the medians.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ALL = ("threads wait", "memory kept", "memory not filled")
VARIANTS = {
    "clsim": ALL,
    "clsim, one thread": (*ALL, "one thread"),
    "without any of them": (),
    "without any, one thread": ("one thread",),
    **{f"without: {left}": tuple(name for name in ALL if name != left) for left in ALL},
}
BATCH = 128


def rates(settings: Sequence[str], seconds: float) -> tuple[float, float]:
    """Images a second in training and in evaluation, in this process."""
    from clsim import openmp

    if "threads wait" in settings:
        openmp.let_threads_sleep()
    import torch

    from clsim import hardware

    if "memory kept" in settings:
        hardware.keep_freed_memory()
    torch.use_deterministic_algorithms(True)
    hardware.MEMORY.fill_uninitialized_memory = "memory not filled" not in settings
    if "one thread" in settings:
        torch.set_num_threads(1)
    import numpy as np
    from _loops import begun, update

    from clsim import plugins
    from clsim.backbones.load import load_backbone
    from clsim.data.streams import Benchmark, Experience
    from clsim.data.table import ImageTable

    images = np.random.default_rng(0).integers(0, 256, (BATCH, 3, 32, 32), dtype=np.uint8)
    table = ImageTable.from_arrays(images, np.arange(BATCH) % 10, tuple(map(str, range(10))))
    everything = Experience(0, table, np.arange(BATCH), tuple(range(10)), "random")
    benchmark = Benchmark((everything,), (everything,), "class")
    strategy = plugins.load("strategies", "l2p")(batch_size=BATCH)
    loop = begun(strategy, load_backbone("vit_micro"), benchmark)
    (batch,) = loop.train_loader.clean(np.arange(BATCH), BATCH)

    def repeated(what: object) -> float:
        assert callable(what)
        what()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            what()
            steps += 1
        return steps * BATCH / (time.perf_counter() - began)

    training = repeated(lambda: update(loop, batch))
    loop.state.learner.eval()
    with torch.no_grad():
        return training, repeated(lambda: loop.state.outputs(batch))


@contextlib.contextmanager
def company(number: int) -> Iterator[None]:
    """Other processes that use the processor."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(name: str, seconds: float) -> tuple[float, float]:
    """`rates` in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    call = [sys.executable, __file__, "--only", name, "--seconds", str(seconds)]
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=clean, cwd=Path(__file__).parent)
    training, evaluation = json.loads(done.stdout)
    return training, evaluation


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile (default 0)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--only", choices=VARIANTS, help="one variant, in this process")
    given = parser.parse_args()
    if given.only is not None:
        print(json.dumps(rates(VARIANTS[given.only], given.seconds)))
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    with company(given.busy):
        for _ in range(given.rounds):
            for name, figures in found.items():
                figures.append(measured(name, given.seconds))
    print(f"l2p with vit_micro, batches of {BATCH}, {os.cpu_count()} processors, {given.busy} other processes")
    print(f"{'':28} training  evaluation, images/s")
    for name, figures in found.items():
        training, evaluation = (statistics.median(each) for each in zip(*figures, strict=True))
        print(f"{name:28} {training:8.0f}  {evaluation:10.0f}")


if __name__ == "__main__":
    main()
