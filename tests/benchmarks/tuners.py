"""Training steps of every tuner against plain VPT-shallow: ``python tests/benchmarks/tuners.py [--model NAME]``.

The tuners take turns, a few steps each, so that a noisy machine is noisy to all of them; printed are medians of images
a second and of the ratios to VPT-shallow in the same round. All have ten tokens where they have tokens. `linear`, `mlp`
and `ncm`, which only counts its features into means, read features, as a run's bank gives them. All compute in
bfloat16 where the processor has it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from _loops import begun, update
from numpy.typing import NDArray

from clsim import plugins
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.tools import Tools

NAMES = (
    "vpt_shallow", "vpt_deep", "prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2", "adapter", "lora", "ssf",
    "bias", "partial", "tinytl", "side", "finetune", "linear", "mlp", "ncm",
)  # fmt: skip
CLASSES = 100


@dataclass
class OneBatch(Tools):
    """Tools that return the same batch again and again: it is not read from the table each time."""

    def __post_init__(self) -> None:
        rows = np.arange(len(self.loader.table))
        (self.batch,) = self.loader.clean(rows, len(rows))

    def clean(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """The batch, whatever is asked for."""
        yield self.batch


class Method:
    """One strategy's training step on a batch that stays."""

    def __init__(self, name: str, model: str, size: int) -> None:
        torch.manual_seed(0)
        backbone = load_backbone(model)
        side = backbone.image.pixels.size
        images = np.random.default_rng(0).integers(0, 256, (size, 3, side, side), dtype=np.uint8)
        table = ImageTable.from_arrays(images, np.arange(size) % CLASSES, tuple(map(str, range(CLASSES))))
        everything = Experience(0, table, np.arange(size), tuple(range(CLASSES)), "random")
        strategy = plugins.load("strategies", name)()
        self.loop = begun(strategy, backbone, Benchmark((everything,), (everything,), "class"))
        self.tools = OneBatch(self.loop.state.learner, self.loop.train_loader, self.loop.tools.how, self.loop.bf16)
        self.loop.state.tools = self.tools

    def step(self) -> None:
        """Forward, backward, update; or what a method without gradients does instead."""
        if self.loop.strategy.has_gradients:
            update(self.loop, self.tools.batch)
        else:
            self.loop.strategy.fit(self.loop.state)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_micro")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CLSIM_CACHE_DIR"] = cache  # of the banks: the images are random
        methods = {name: Method(name, given.model, given.batch_size) for name in NAMES}
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for method in methods.values():
        method.step()
    for _ in range(given.rounds):
        for name, method in methods.items():
            began = time.perf_counter()
            for _ in range(given.steps):
                method.step()
            rates[name].append(given.steps * given.batch_size / (time.perf_counter() - began))
    print(f"{given.model}, batches of {given.batch_size}, {torch.get_num_threads()} threads")
    print(f"{'':14} images/s  time against vpt_shallow   times as fast")
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["vpt_shallow"], found, strict=True))
        print(f"{name:14} {statistics.median(found):8.1f}  {ratio:23.3f}  {1 / ratio:14.2f}")


if __name__ == "__main__":
    main()
