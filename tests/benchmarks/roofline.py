"""Where the time goes: ``python tests/benchmarks/roofline.py [--model vit_base_patch16_224] [--strategies l2p,bank]``.

For a training step and an evaluation of each strategy, and for filling the feature bank (`bank`): the share of the time
in linear layers and other plain matrix products, the rate reached in them, the rate that products of the same shapes
reach alone, measured next to it, and the rest of the time by kind of operation. The bound is the time that would remain
if the step had nothing but its products, attention's and the convolutions' among them, at the rate of those that are
alone; printed as a share of the time taken. One thread; the seconds are of processor time, so that other processes on
the machine count as little as possible. ViT-B/16 has random weights.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from _loops import begun
from l2p_step import MODEL as VIT_B
from l2p_step import random_vit
from torch.profiler import ProfilerActivity, profile

from clsim import hardware, plugins
from clsim.backbones.features import BLOCK
from clsim.backbones.load import Backbone, load_backbone
from clsim.backbones.vit import VisionTower
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec, evaluation
from clsim.evaluation import predict_rows
from clsim.events import Step
from clsim.tools import eval_batch

CLASSES = tuple(range(10))
MATRICES = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}  # which input is the first factor
KINDS = {  # what the names of operations begin with -> kind
    "attention": ("aten::_scaled_dot_product", "aten::_softmax"),
    "convolution": ("aten::mkldnn_convolution", "aten::convolution_backward"),
    "GELU": ("aten::gelu",),
    "norms": ("aten::native_layer_norm", "aten::native_batch_norm"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_"),
    "sums": ("aten::add", "aten::mul", "aten::sum"),
}
Work = Callable[[], object]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of the two factors of a product


def kind_of(name: str) -> str:
    """The kind of an operation."""
    if name in MATRICES:
        return "products"
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "other")


def operations(name: str, shapes: Sequence[Sequence[int]], given: Sequence[Any]) -> float:
    """Additions and multiplications of a matrix product, a convolution or attention; 0 for all else."""
    if name in MATRICES:
        first, second = shapes[MATRICES[name] :][:2]
        return 2.0 * math.prod(first) * second[-1]
    if name.startswith("aten::_scaled_dot_product"):
        backward = name.endswith("backward")
        queries, keys = shapes[1:3] if backward else shapes[:2]  # the gradient comes first
        return (8 if backward else 4) * float(math.prod(queries) * keys[2])
    if name == "aten::mkldnn_convolution":
        (batch, _, *sides), weight, stride = shapes[0], shapes[1], int(given[4][0])
        return 2.0 * batch * math.prod(-(-side // stride) for side in sides) * math.prod(weight)
    if name == "aten::convolution_backward":
        (batch, _, *sides), weight = shapes[0], shapes[2]
        return 2.0 * batch * math.prod(sides) * math.prod(weight) * sum(map(int, given[10][:2]))  # of input, of weight
    return 0.0


def alone(shapes: Counter[Shapes], dtype: torch.dtype) -> float:
    """Seconds of products of these shapes with nothing between them; each is the best of some."""
    total = 0.0
    for (first, second), count in shapes.items():
        # as in linear layers, the second factor is transposed
        a, b = torch.randn(first).to(dtype), torch.randn(*second[:-2], second[-1], second[-2]).to(dtype)
        b = b.transpose(-1, -2)
        torch.matmul(a, b)
        total += count * min(seconds(partial(torch.matmul, a, b)) for _ in range(5))
    return total


def seconds(work: Work) -> float:
    """Seconds of processor time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def report(name: str, work: Work, images: int, rounds: int, bf16: bool) -> None:
    """Measure and print one line."""
    for _ in range(2):
        work()
    taken = [seconds(work) for _ in range(rounds)]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        work()
    spent: Counter[str] = Counter()
    shapes: Counter[Shapes] = Counter()
    plain = others = 0.0  # operations
    for event in profiled.events() or ():
        spent[kind_of(event.name)] += event.self_cpu_time_total
        done = operations(event.name, event.input_shapes, event.concrete_inputs)
        if event.name in MATRICES:
            first, second = event.input_shapes[MATRICES[event.name] :][:2]
            shapes[tuple(first), tuple(second)] += 1
            plain += done
        else:
            others += done
    whole = sum(spent.values())
    best = alone(shapes, torch.bfloat16 if bf16 else torch.float32)
    step = statistics.median(taken)
    rate, reached = plain / best, plain / (step * spent["products"] / whole)
    print(f"{name:22}{1000 * step / images:8.2f}{100 * spent['products'] / whole:8.0f} %{reached / 1e9:9.0f}", end="")
    print(f"{rate / 1e9:8.0f}{100 * (plain + others) / rate / step:7.0f} %  ", end="")
    kinds = (*KINDS, "other")
    print(" ".join(f"{100 * spent[kind] / whole:{len(kind) + 1}.0f}" for kind in kinds), flush=True)


def backbone_of(model: str) -> Backbone:
    """The model; ViT-B/16 has random weights."""
    if model != VIT_B:
        return load_backbone(model)
    torch.manual_seed(0)
    return Backbone(model, VisionTower(random_vit(), InputSpec(224)).requires_grad_(False).eval())


def measure(model: str, name: str, size: int, rounds: int) -> None:
    """A strategy's training step and evaluation, or the bank's forward pass."""
    images = np.random.default_rng(0).integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
    table = ImageTable.from_arrays(images, np.arange(size) % len(CLASSES), tuple(map(str, CLASSES)))
    backbone = backbone_of(model)
    if name == "bank":
        pixels = evaluation(torch.from_numpy(images[:BLOCK]), backbone.image.pixels)
        with torch.no_grad():
            report("bank", lambda: backbone.image(pixels), len(pixels), rounds, False)
        return
    experience = Experience(0, table, np.arange(size), CLASSES, "random")
    strategy = plugins.load("strategies", name)(batch_size=size)
    loop = begun(strategy, backbone, Benchmark((experience,), (experience,), "class"))
    s, loader = loop.state, loop.train_loader
    if "features" in strategy.reads():
        s.features(experience.rows)  # fills the bank
    report(f"{name}, training", lambda: loop._step(Step(s, experience.rows), experience), size, rounds, loop.bf16)
    s.learner.eval()
    together = eval_batch(loader.reads)
    rows = np.resize(experience.rows, together)
    evaluate = partial(predict_rows, s.learner, loader, rows, CLASSES, loop.tools.autocast)
    report(f"{name}, evaluation", evaluate, together, rounds, loop.bf16)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_micro", help="default %(default)s")
    parser.add_argument("--strategies", default="l2p,vpt_deep,finetune,bank", help="default %(default)s")
    parser.add_argument("--images", type=int, default=64, help="in a training step (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    given = parser.parse_args()
    print(f"{given.model}, {given.images} images, one thread, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':22}{'ms/image':>8}{'products':>10}{'GFLOP/s':>9}{'alone':>8}{'bound':>9}  ", end="")
    print(" ".join(f"{kind:>{len(kind) + 1}}" for kind in (*KINDS, "other")) + "  (% of the time)")
    with tempfile.TemporaryDirectory() as cache, hardware.torch_settings(threads=1):
        os.environ["CLSIM_CACHE_DIR"] = cache  # of the banks: the images are random
        for name in given.strategies.split(","):
            measure(given.model, name, given.images, given.rounds)


if __name__ == "__main__":
    main()
