"""L2P's training step and evaluation in images/s, next to a plain implementation of the published method.

    python tests/benchmarks/l2p_step.py [--rounds 4] [--presets clsim,port,official,pool_of_1] [--threads N]

ViT-B/16 at 224 with random weights, batches of 16 random 32x32 images, image pipeline included. The yardstick takes two
forward passes a step in float32, as published code does. clsim takes the steps of its own loop, with the bank of
queries filled (a run fills it once, for all its epochs and evaluations), in bfloat16 where the processor has it.
A round measures everything once, one after the other; a ratio is the median over rounds of the ratio within a round,
so whatever else the machine does weighs on both sides. The bounds say what the images/s could be at most if
nothing but matrix products took time, at the rates that this machine reaches for those of the model.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from _loops import begun
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clsim import plugins
from clsim.backbones.load import Backbone
from clsim.backbones.vit import VisionTower
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.evaluation import predict_rows
from clsim.events import Step
from clsim.tools import EVAL_BATCH

MODEL = "vit_base_patch16_224"
CLASSES = 100
ALLOWED = tuple(range(10))  # classes of the experience
WIDTH, DEPTH, PATCHES = 768, 12, 196
PRESETS = ("clsim", "port", "official", "pool_of_1")


@dataclass
class Side:
    """Something to measure: a training step, an evaluation, and the matrix products an image needs in each."""

    name: str
    step: Callable[[], None]
    evaluate: Callable[[], None]
    batch: int  # images in a step
    eval_batch: int  # images in an evaluation
    train_flop: float = 0.0
    eval_flop: float = 0.0
    bf16: bool = False
    train: list[float] = field(default_factory=list)  # images/s, by round
    eval: list[float] = field(default_factory=list)


def random_table(count: int) -> ImageTable:
    """Random 32x32 images of the experience's classes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return ImageTable.from_arrays(images, np.arange(count) % len(ALLOWED), tuple(map(str, range(CLASSES))))


def random_vit() -> VisionTransformer:
    """ViT-B/16 with random weights and without a classifier."""
    vit = timm.create_model(MODEL, pretrained=False, num_classes=0)
    assert isinstance(vit, VisionTransformer)
    return vit


def clsim_side(preset: str, table: ImageTable, batch: int, precision: str) -> Side:
    """clsim's own loop, inside its first experience."""
    strategy_class = plugins.load("strategies", "l2p")
    strategy = strategy_class(**{**strategy_class.presets[preset], "batch_size": batch})
    backbone = Backbone(MODEL, VisionTower(random_vit(), InputSpec(224)).requires_grad_(False).eval())
    experience = Experience(0, table, np.arange(len(table)), ALLOWED, "random")
    loop = begun(strategy, backbone, Benchmark((experience,), (experience,), "class"), precision)
    s, loader = loop.state, loop.train_loader
    s.features(experience.rows)  # fills the bank
    eval_rows = experience.rows[:EVAL_BATCH]

    def step() -> None:
        s.learner.train()
        loop._step(Step(s, rows_of_step(len(table), batch, s.step)), experience)

    def evaluate() -> None:
        s.learner.eval()
        predict_rows(s.learner, loader, eval_rows, ALLOWED, loop.tools.autocast)

    prompts = strategy.top_k * strategy.prompt_length
    forward, backward = prompted_flop(prompts, read=prompts)
    query = 0.0 if strategy.query == "clean" else prompted_flop(0, read=1)[0]
    flops = (query + forward + backward, forward)
    return Side(f"clsim, preset {preset}", step, evaluate, batch, len(eval_rows), *flops, loop.bf16)


def rows_of_step(size: int, batch: int, step: int) -> NDArray[np.int64]:
    """The rows of one step, going round the table."""
    return (np.arange(batch) + step * batch) % size


class PlainL2P(nn.Module):
    """L2P as published, with nothing done for speed: Wang et al. 2022, arXiv:2112.08654, section 4."""

    def __init__(self, vit: VisionTransformer, pool_size: int = 10, length: int = 5, top_k: int = 5) -> None:
        super().__init__()
        self.vit: Any = vit.requires_grad_(False)  # Any: its blocks are called by names that are not typed
        self.keys = nn.Parameter(torch.empty(pool_size, vit.embed_dim).uniform_(-1, 1))
        self.prompts = nn.Parameter(torch.empty(pool_size, length, vit.embed_dim).uniform_(-1, 1))
        self.head = nn.Linear(vit.embed_dim, CLASSES)
        self.top_k = top_k

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,S,S) -> (B,K) logits, (B,N) cosines of the chosen keys."""
        with torch.no_grad():
            query = self.vit(images)
        cosine = nn.functional.normalize(query, dim=1) @ nn.functional.normalize(self.keys, dim=1).T
        near, chosen = cosine.topk(self.top_k, dim=1)
        prompts = self.prompts[chosen].flatten(1, 2)
        tokens = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        outputs = self.vit.norm(self.vit.blocks(torch.cat([prompts, tokens], dim=1)))
        return self.head(outputs[:, : prompts.shape[1]].mean(dim=1)), near


def yardstick_side(table: ImageTable, batch: int) -> Side:
    """The plain implementation with Adam, gradients clipped at norm 1, in float32."""
    model, pixels, how = PlainL2P(random_vit()), InputSpec(224), Augmentation(crop_min=0.05)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.03 * batch / 256)
    generator = torch.Generator().manual_seed(0)
    mask = torch.full((CLASSES,), -torch.inf)
    mask[list(ALLOWED)] = 0
    images, labels = torch.from_numpy(table.images), torch.from_numpy(table.labels)
    steps = 0

    def step() -> None:
        nonlocal steps
        rows = torch.from_numpy(rows_of_step(len(table), batch, steps))
        logits, near = model(augmented(images[rows], pixels, how, generator))
        loss = nn.functional.cross_entropy(logits + mask, labels[rows]) - 0.5 * near.sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        steps += 1

    @torch.no_grad()
    def evaluate() -> None:
        (model(evaluation(images[:batch], pixels))[0] + mask).argmax(dim=1)

    forward, backward = prompted_flop(25, read=PATCHES + 1 + 25)
    query = prompted_flop(0, read=PATCHES + 1)[0]
    return Side("yardstick, fp32", step, evaluate, batch, batch, query + forward + backward, query + forward)


def prompted_flop(prompts: int, read: int) -> tuple[float, float]:
    """Operations of the matrix products for one image, forward and backward; the last block computes `read` tokens.

    A multiply and an add are two operations. Weights are frozen: the gradient goes to tokens alone, which costs a
    linear layer as much as its forward pass, and each of attention's two products twice as much.
    """
    tokens = PATCHES + 1 + prompts
    linear = (DEPTH - 1) * 24 * tokens * WIDTH**2 + (4 * tokens + 20 * read) * WIDTH**2
    attention = (DEPTH - 1) * 4 * tokens**2 * WIDTH + 4 * tokens * read * WIDTH
    embedding = 2 * PATCHES * WIDTH * 3 * 16**2
    return float(linear + attention + embedding), float(linear + 2 * attention)


def product_rate(dtype: torch.dtype, batch: int) -> float:
    """Operations a second in a block's four linear layers, for a batch of images of 222 tokens; best of three."""
    rows = batch * (PATCHES + 1 + 25)
    seconds, operations = 0.0, 0
    for wide, narrow in ((3, 1), (1, 1), (4, 1), (1, 4)):
        x, weight = torch.randn(rows, narrow * WIDTH).to(dtype), torch.randn(wide * WIDTH, narrow * WIDTH).to(dtype)
        nn.functional.linear(x, weight)
        seconds += min(seconds_of(partial(nn.functional.linear, x, weight)) for _ in range(3))
        operations += 2 * rows * wide * narrow * WIDTH**2
    return operations / seconds


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(sides: list[Side], rounds: int) -> dict[bool, list[float]]:
    """Fill in the sides' images/s, a round at a time; the rates of matrix products by whether they are in bfloat16."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for side in sides:  # a first step allocates and compiles
        side.step()
        side.evaluate()
    for number in range(rounds):
        for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
            rates[bf16].append(product_rate(dtype, sides[0].batch))
        for side in sides:
            side.train.append(side.batch / seconds_of(side.step))
            side.eval.append(side.eval_batch / seconds_of(side.evaluate))
        print(f"round {number + 1} of {rounds} done", flush=True)
    return rates


def report(sides: list[Side], rates: dict[bool, list[float]]) -> None:
    """Images/s, ratios to the first side, and bounds."""
    rate = {bf16: median(values) for bf16, values in rates.items()}
    print(f"\nmatrix products: fp32 {rate[False] / 1e9:.0f} GFLOP/s, bf16 {rate[True] / 1e9:.0f} GFLOP/s", end="")
    print(f", ratio {median(b / a for a, b in zip(rates[False], rates[True], strict=True)):.2f}")
    print("bound: images/s if matrix products at those rates were all; (x) the ratio to the yardstick's bound\n")
    print(
        f"{'':24}{'training':>10}{'ratio':>8}{'bound':>8}{'(x)':>7}{'evaluation':>13}{'ratio':>8}{'bound':>8}{'(x)':>7}"
    )
    first = sides[0]
    for side in sides:
        columns = []
        for kind, gap in (("train", 10), ("eval", 13)):
            own, base = getattr(side, kind), getattr(first, kind)
            ratio = median(a / b for a, b in zip(own, base, strict=True))
            bounds = [rate[s.bf16] / flop if (flop := getattr(s, f"{kind}_flop")) else None for s in (side, first)]
            columns.append(f"{median(own):{gap}.2f}{ratio:8.2f}")
            columns.append(f"{bounds[0]:8.2f}{bounds[0] / bounds[1]:7.2f}" if bounds[0] and bounds[1] else " " * 15)
        print(f"{side.name:24}" + "".join(columns))


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each side (default 4)")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a training step (default 16)")
    parser.add_argument(
        "--presets", default=",".join(PRESETS), help="presets of l2p, with commas (default %(default)s)"
    )
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="clsim's (default auto)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = random_table(64)
    print(f"torch {torch.__version__}, {options.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CLSIM_CACHE_DIR"] = cache  # of the banks: the weights are random, and no other run has them
        sides = [yardstick_side(table, options.batch_size)]
        for preset in options.presets.split(","):
            sides.append(clsim_side(preset, table, options.batch_size, options.precision))
        report(sides, measure(sides, options.rounds))


if __name__ == "__main__":
    main()
