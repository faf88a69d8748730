"""Whether `torch.compile` would help: L2P's training and evaluation with and without it, on a CPU.

    python tests/benchmarks/compiled.py [--rounds 6] [--precision fp32,bf16] [--model vit_micro] [--threads 1]

Both take the steps of clsim's own loop on the same random images; the compiled learner has one graph for training and
one for evaluation. A round measures both, one after the other, in seconds of processor time; the ratio is the median of
the ratios within rounds. The seconds of the first step and the first evaluation include compiling, in wall time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from _loops import begun
from l2p_step import ALLOWED, random_table, rows_of_step

from clsim import plugins
from clsim.backbones.load import load_backbone
from clsim.data.streams import Benchmark, Experience
from clsim.evaluation import predict_rows
from clsim.events import Step

IMAGES, BATCH, STEPS = 256, 32, 6  # of the table, of a step, of a measurement


class Side:
    """A loop inside its first experience, compiled or not."""

    def __init__(self, model: str, precision: str, compiled: bool) -> None:
        self.experience = Experience(0, random_table(IMAGES), np.arange(IMAGES), ALLOWED, "random")
        stream = (self.experience,)
        strategy = plugins.load("strategies", "l2p")(batch_size=BATCH)
        self.loop = begun(strategy, load_backbone(model), Benchmark(stream, stream, "class"), precision)
        self.loop.state.features(self.experience.rows)  # fills the bank
        if compiled:
            self.loop.state.learner.compile(dynamic=False)
        self.losses: list[float] = []

    def step(self) -> None:
        """An update."""
        s = self.loop.state
        s.learner.train()
        self.loop._step(Step(s, rows_of_step(IMAGES, BATCH, s.step)), self.experience)
        self.losses.append(self.loop._losses[-1].item())

    def evaluate(self) -> None:
        """Predictions of all images."""
        s = self.loop.state
        s.learner.eval()
        predict_rows(s.learner, self.loop.train_loader, self.experience.rows, ALLOWED, self.loop.tools.autocast)


def seconds(work: Callable[[], None], times: int, clock: Callable[[], float]) -> float:
    """Seconds of some calls."""
    began = clock()
    for _ in range(times):
        work()
    return clock() - began


def compare(model: str, precision: str, rounds: int) -> None:
    """Print everything about one precision."""
    plain, compiled = sides = [Side(model, precision, each) for each in (False, True)]
    for name, side in zip(("plain", "compiled"), sides, strict=True):
        first = [seconds(work, 1, time.perf_counter) for work in (side.step, side.evaluate)]
        print(f"{precision} {name}: first step {first[0]:.1f} s, first evaluation {first[1]:.1f} s", flush=True)
    found: list[list[tuple[float, float]]] = [[], []]
    for _ in range(rounds):
        for kind, (name, times) in enumerate((("step", STEPS), ("evaluate", 1))):
            own, other = (seconds(getattr(side, name), times, time.process_time) for side in sides)
            found[kind].append((own, other))
    for kind, images, name in ((0, STEPS * BATCH, "training"), (1, IMAGES, "evaluation")):
        own, other = (images / median(pair[i] for pair in found[kind]) for i in (0, 1))
        ratio = median(a / b for a, b in found[kind])
        print(f"{precision} {name}: {own:.1f} images/s, compiled {other:.1f}, ratio {ratio:.3f}")
    same = plain.losses == compiled.losses
    print(f"{precision}: the losses have {'the same' if same else 'other'} bits", flush=True)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="measurements of each side (default %(default)s)")
    parser.add_argument("--precision", default="fp32,bf16", help="with commas (default %(default)s)")
    parser.add_argument("--model", default="vit_micro", help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CLSIM_CACHE_DIR"] = cache
        for precision in options.precision.split(","):
            torch.manual_seed(0)
            compare(options.model, precision, options.rounds)


if __name__ == "__main__":
    main()
