"""Training steps of every tuner against plain VPT-shallow: ``python tests/benchmarks/tuners.py [--model NAME]``.

The tuners take turns, a few steps each, so that a noisy machine is noisy to all of them; printed are medians of images
a second and of the ratios to VPT-shallow in the same round. All have ten tokens where they have tokens. `linear`, `mlp`
and `ncm`, which only counts its features into means, read features, as a run's bank hands them out.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from clsim import plugins
from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.data.streams import Info
from clsim.events import State

NAMES = (
    "vpt_shallow", "vpt_deep", "prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2", "adapter", "lora", "ssf",
    "bias", "partial", "tinytl", "side", "finetune", "linear", "mlp", "ncm",
)  # fmt: skip
CLASSES = 100


class Step:
    """One strategy's training step on a batch that stays."""

    def __init__(self, name: str, model: str, size: int) -> None:
        torch.manual_seed(0)
        backbone = load_backbone(model)
        self.strategy = strategy = plugins.load("strategies", name)()
        info = Info(tuple(map(str, range(CLASSES))), (), "class", 1)
        self.learner = strategy.build(backbone, info)
        if not any(p.requires_grad for p in backbone.image.parameters()):
            backbone.image.to(torch.bfloat16)
        side = backbone.image.pixels.size
        features = torch.randn(size, backbone.image.out_dim) if "features" in strategy.reads() else None
        images = torch.randn(size, 3, side, side) if "images" in strategy.reads() else None
        self.batch = Batch(images, features, torch.arange(size) % CLASSES)
        self.state = State(self.learner, info, seed=0, clean_batches=lambda: iter([self.batch]))
        if strategy.has_gradients:
            self.optimizer = strategy.configure_optimizer(self.learner)
        self.learner.train()

    def __call__(self) -> None:
        """Forward, backward, update; or what stands for them in a method without gradients."""
        if not self.strategy.has_gradients:
            self.strategy.fit(self.state)
            return
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.learner(self.batch).float()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(logits, self.batch.labels).backward()
        self.optimizer.step()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_micro")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    steps = {name: Step(name, given.model, given.batch_size) for name in NAMES}
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for step in steps.values():
        step()
    for _ in range(given.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(given.steps):
                step()
            rates[name].append(given.steps * given.batch_size / (time.perf_counter() - began))
    print(f"{given.model}, batches of {given.batch_size}, {torch.get_num_threads()} threads")
    print(f"{'':14} images/s  time against vpt_shallow   times as fast")
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["vpt_shallow"], found, strict=True))
        print(f"{name:14} {statistics.median(found):8.1f}  {ratio:23.3f}  {1 / ratio:14.2f}")


if __name__ == "__main__":
    main()
