"""ViT-B/16 on a GPU: L2P's training and evaluation in images/s beside a plain implementation, and a whole stream.

    python tests/benchmarks/gpu.py [--rounds 5] [--steps 20] [--batch-size 16] [--precision auto] [--no-stream]
    python tests/benchmarks/gpu.py --tiny --device cpu   # a very small model: only to see that the script works

Random weights and random 32x32 images, which are enlarged to 224, image pipeline included. The plain implementation is
that of l2p_step.py, in float32 with TF32, as published code runs: two forward passes in a step, and batches from memory
of the CPU. clsim takes the steps of its own loop, deterministic and without TF32, with the bank of queries filled. A
round measures both, one after the other; a ratio is the median of the ratios within rounds. Utilisation: the rate of
clsim's own matrix products as a share of the rate that products of the model's shapes reach alone on this device.

The stream has the sizes of Split CIFAR-100: 10 experiences of 5,000 training and 1,000 test images, 5 epochs. It begins
with an empty bank, and ends with the last evaluation.
"""

import argparse
import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from _loops import begun, new
from l2p_step import CLASSES, PlainL2P, random_vit, rows_of_step
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from clsim import plugins
from clsim.backbones.load import Backbone
from clsim.backbones.vit import VisionTower, nano_vit
from clsim.data.streams import Benchmark, class_incremental
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.evaluation import predict_rows
from clsim.events import Step
from clsim.hardware import peak_memory, reset_peak_memory, settled, torch_settings

PROMPTS = 25  # tokens that the preset adds: five prompts of five tokens
Work = Callable[[], None]


def stream(per_class: int, tests: int) -> Benchmark:
    """Ten experiences of ten classes with random images."""
    draw = np.random.default_rng(0)

    def table(count: int) -> ImageTable:
        images = draw.integers(0, 256, (CLASSES * count, 3, 32, 32), dtype=np.uint8)
        return ImageTable.from_arrays(images, np.repeat(np.arange(CLASSES), count), tuple(map(str, range(CLASSES))))

    scenario = plugins.load("scenarios", "split_cifar100")()
    return class_incremental(scenario, table(per_class), table(tests), 10)


def finish(device: str) -> None:
    """Wait until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def rate(work: Work, images: int, steps: int, device: str) -> float:
    """Images a second over some calls of `work`."""
    finish(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    finish(device)
    return images * steps / (time.perf_counter() - began)


def backbone_of(vit: VisionTransformer, side: int) -> Backbone:
    """A frozen tower with these weights."""
    return Backbone("random", VisionTower(vit, InputSpec(side)).requires_grad_(False).eval())


def clsim_side(benchmark: Benchmark, backbone: Backbone, batch: int, precision: str, device: str) -> tuple[Work, Work]:
    """A training step, and the evaluation of some images, of clsim's loop inside its first experience."""
    strategy = plugins.load("strategies", "l2p")(batch_size=batch)
    loop = begun(strategy, backbone, benchmark, precision, device)
    s, experience = loop.state, loop.state.experience
    s.features(experience.rows)  # fills the bank
    tested = benchmark.test_stream[0]
    loader = loop.test_loaders[tested.table.fingerprint]

    def step() -> None:
        s.learner.train()
        chosen = [experience.rows[rows_of_step(len(experience.rows), batch, s.step + ahead)] for ahead in (0, 1)]
        loop.train_loader.upcoming = chosen[1]
        loop._step(Step(s, chosen[0]), experience)

    def evaluate() -> None:
        s.learner.eval()
        predict_rows(s.learner, loader, tested.rows, experience.classes, loop.tools.autocast)

    return step, evaluate


def plain_side(benchmark: Benchmark, vit: VisionTransformer, side: int, batch: int, device: str) -> tuple[Work, Work]:
    """The same of the plain implementation."""
    model, pixels, how = PlainL2P(vit).to(device), InputSpec(side), Augmentation(crop_min=0.05)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.03 * batch / 256)
    learned, tested = benchmark.train_stream[0], benchmark.test_stream[0]
    mask = torch.full((CLASSES,), -torch.inf)
    mask[list(learned.classes)] = 0
    mask, generator, steps = mask.to(device), torch.Generator().manual_seed(0), 0

    def step() -> None:
        nonlocal steps
        rows = learned.rows[rows_of_step(len(learned.rows), batch, steps)]
        images = torch.from_numpy(learned.table.pixels(rows)).to(device)
        labels = torch.from_numpy(learned.table.labels[rows]).to(device)
        logits, near = model(augmented(images, pixels, how, generator))
        loss = nn.functional.cross_entropy(logits + mask, labels) - 0.5 * near.sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        steps += 1

    @torch.no_grad()
    def evaluate() -> None:
        for rows in np.array_split(tested.rows, -(-len(tested.rows) // 64)):
            images = torch.from_numpy(tested.table.pixels(rows)).to(device)
            (model(evaluation(images, pixels))[0] + mask).argmax(dim=1)

    return step, evaluate


def product_rates(vit: VisionTransformer, batch: int, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Images a second if a training step, or an evaluation, were only linear layers at the rate that they reach alone.

    Attention's own products, about 4 % at 224 pixels, are left out. Weights are frozen: the backward pass has as many
    products as the forward pass.
    """
    width, rows = vit.embed_dim, batch * (vit.patch_embed.num_patches + 1 + PROMPTS)
    layers = []
    for wide, narrow in ((3, 1), (1, 1), (4, 1), (1, 4)):
        x, weight = (torch.randn(n, narrow * width, device=device, dtype=dtype) for n in (rows, wide * width))
        layers.append(partial(nn.functional.linear, x, weight))

    def block() -> None:
        for layer in layers:
            layer()

    block()
    forward = rate(block, batch, 10, device) / len(vit.blocks)
    return forward / 2, forward


@contextlib.contextmanager
def as_published() -> Iterator[None]:
    """torch's settings of the plain implementation: TF32, and no deterministic algorithms."""
    with torch_settings(None):  # puts all of them back
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        yield


def compare(options: argparse.Namespace, vit: VisionTransformer, side: int, benchmark: Benchmark) -> None:
    """Print images/s of both, their ratio, and the utilisation."""
    batch, device, tests = options.batch_size, options.device, len(benchmark.test_stream[0].rows)
    with torch_settings(None):
        ours = clsim_side(benchmark, backbone_of(copy.deepcopy(vit), side), batch, options.precision, device)
    theirs = plain_side(benchmark, copy.deepcopy(vit), side, batch, device)
    dtype = torch.bfloat16 if settled(device, options.precision)[1] == "bf16" else torch.float32
    sizes, counts = (batch, tests), (options.steps, 1)
    rates: dict[str, list[tuple[float, ...]]] = {"clsim": [], "plain": [], "products": []}
    for number in range(options.rounds + 1):
        with torch_settings(None):
            own = [rate(work, size, count, device) for work, size, count in zip(ours, sizes, counts, strict=True)]
            alone = product_rates(vit.to(device), batch, dtype, device)
        with as_published():
            plain = [rate(work, size, count, device) for work, size, count in zip(theirs, sizes, counts, strict=True)]
        if number:  # the first round allocates and chooses kernels
            for name, found in (("clsim", own), ("plain", plain), ("products", alone)):
                rates[name].append(tuple(found))
    print(f"{'':12}{'plain images/s':>16}{'clsim images/s':>16}{'ratio':>8}{'utilisation':>13}")
    for kind, name in enumerate(("training", "evaluation")):
        own, plain, most = ([found[kind] for found in rates[of]] for of in ("clsim", "plain", "products"))
        ratio, used = (median(a / b for a, b in zip(own, other, strict=True)) for other in (plain, most))
        print(f"{name:12}{median(plain):16.1f}{median(own):16.1f}{ratio:8.2f}{used:12.0%}")


def whole_stream(options: argparse.Namespace, vit: VisionTransformer, side: int, benchmark: Benchmark) -> None:
    """Print the seconds of a whole stream, from an empty bank to the last evaluation."""
    strategy = plugins.load("strategies", "l2p")(
        batch_size=options.batch_size, **({"epochs": 1} if options.tiny else {})
    )
    with torch_settings(None):
        loop = new(strategy, backbone_of(copy.deepcopy(vit), side), benchmark, options.precision, options.device)
        reset_peak_memory()
        began = time.perf_counter()
        loop.run()
        finish(options.device)
    took, cost = time.perf_counter() - began, loop.cost
    print(
        f"whole stream: {took:.1f} s, of which training {cost.seconds_training:.1f} s, evaluation "
        f"{cost.seconds_evaluation:.1f} s, bank {took - cost.seconds_training - cost.seconds_evaluation:.1f} s; "
        f"{cost.images} images trained; peak memory {peak_memory() / 2**30:.1f} GiB"
    )


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    parser.add_argument("--tiny", action="store_true", help="vit_nano, and a stream of 200 training images")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a measurement (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a training step (default %(default)s)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="clsim's (default auto)")
    parser.add_argument("--no-stream", action="store_true", help="leave out the whole stream")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "torch finds no GPU on this machine; --tiny --device cpu shows that the script works\n")
    torch.manual_seed(0)
    vit, side, sizes = (nano_vit(), 16, (2, 1)) if options.tiny else (random_vit(), 224, (500, 100))
    benchmark = stream(*sizes)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, clsim in {settled(options.device, options.precision)[1]}")
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("steps", "stream"):
            os.environ["CLSIM_CACHE_DIR"] = f"{cache}/{kind}"  # of the banks: that of the stream is filled in its time
            if kind == "steps":
                compare(options, vit, side, benchmark)
            elif not options.no_stream:
                whole_stream(options, vit, side, benchmark)


if __name__ == "__main__":
    main()
