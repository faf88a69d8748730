"""L2P on ViT-B/16 on a GPU, next to a plain implementation: ``python tests/benchmarks/gpu.py [--rounds 5] [--tiny]``.

Images/s in training and evaluation, in steps of clsim's own loop and in those of the plain implementation of
l2p_step.py (two forward passes in float32, and the same under bfloat16 autocast); the share of the time in which the
GPU computes; and the seconds of a whole Split CIFAR-100 (--data-dir DATA; left out without it). Weights are random.
`--tiny --device cpu` shows that the script works, on any machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from _loops import begun
from l2p_step import ALLOWED, CLASSES, MODEL, PlainL2P, random_table, random_vit, rows_of_step
from torch import nn

import clsim
from clsim import plugins
from clsim.backbones.load import Backbone
from clsim.backbones.vit import VisionTower
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.evaluation import predict_rows
from clsim.events import Step
from clsim.hardware import torch_settings


def ours(model: str, table: ImageTable, batch: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of clsim's loop, and an evaluation of the whole table."""
    cls = plugins.load("strategies", "l2p")
    strategy = cls(batch_size=batch)
    backbone = Backbone(model, VisionTower(random_vit(model), InputSpec(224)).requires_grad_(False).eval())
    experience = Experience(0, table, np.arange(len(table)), ALLOWED, "random")
    loop = begun(strategy, backbone, Benchmark((experience,), (experience,), "class"), device=device)
    s = loop.state
    s.features(experience.rows)  # fills the bank

    def step() -> None:
        s.learner.train()
        loop._step(Step(s, rows_of_step(len(table), batch, s.step)), experience)

    def evaluate() -> None:
        s.learner.eval()
        predict_rows(s.learner, loop.train_loader, experience.rows, ALLOWED, loop.tools.autocast)

    return step, evaluate


def plain(
    name: str, table: ImageTable, batch: int, device: str, bf16: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same of the plain implementation."""
    model, pixels, how = PlainL2P(model=name).to(device), InputSpec(224), Augmentation(crop_min=0.05)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.03 * batch / 256)
    generator, mask = torch.Generator().manual_seed(0), torch.full((CLASSES,), -torch.inf, device=device)
    mask[list(ALLOWED)] = 0
    images, labels = torch.from_numpy(table.images), torch.from_numpy(table.labels)
    steps = 0

    def step() -> None:
        nonlocal steps
        rows = torch.from_numpy(rows_of_step(len(table), batch, steps))
        given = augmented(images[rows].to(device), pixels, how, generator)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits, near = model(given)
        loss = nn.functional.cross_entropy(logits.float() + mask, labels[rows].to(device)) - 0.5 * near.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        steps += 1

    @torch.no_grad()
    def evaluate() -> None:
        for start in range(0, len(images), batch):
            given = evaluation(images[start : start + batch].to(device), pixels)
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                (model(given)[0].float() + mask).argmax(dim=1).cpu()

    return step, evaluate


def rate(work: Callable[[], None], images: int, device: str, times: int) -> float:
    """Images/s of repeated work."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return images * times / (time.perf_counter() - began)


def wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def busy_share(work: Callable[[], None], times: int) -> float:
    """The share of the time in which the GPU has a kernel to compute."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wait("cuda")
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait("cuda")
        seconds = time.perf_counter() - began
    busy: float = sum(event.self_device_time_total for event in profile.key_averages())  # in microseconds
    return busy / 1e6 / seconds


def whole_stream(data_dir: Path, device: str, fields: Mapping[str, Any]) -> float:
    """Seconds of l2p on Split CIFAR-100 at ViT-B/16, one epoch, from an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLSIM_CACHE_DIR"] = f"{folder}/cache"
        weights = Path(folder) / "random.pt"
        torch.save(timm.create_model(MODEL, pretrained=False).state_dict(), weights)
        began = time.perf_counter()
        clsim.run(
            scenario="split_cifar100",
            strategy="l2p",
            epochs=1,
            backbone=MODEL,
            weights=str(weights),
            data_dir=str(data_dir),
            out=f"{folder}/runs",
            device=device,
            **fields,
        )
        return time.perf_counter() - began


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step (default %(default)s)")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-100 lies: adds the time of the whole stream")
    parser.add_argument("--tiny", action="store_true", help="one round, one image in a step, a ViT of width 192")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "gpu.py: torch finds no NVIDIA GPU; --tiny --device cpu shows that the script works\n")
    rounds, batch, times = (1, 1, 1) if given.tiny else (given.rounds, given.batch_size, 10)
    torch.manual_seed(0)
    table = random_table(2 * batch if given.tiny else 1024)
    model = "vit_tiny_patch16_224" if given.tiny else MODEL
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {batch} images in a step")
    with tempfile.TemporaryDirectory() as cache, torch_settings(None):
        os.environ["CLSIM_CACHE_DIR"] = cache  # of the banks: the weights are random, and no other run has them
        sides = {"plain, fp32": plain(model, table, batch, given.device, bf16=False)}
        sides["plain, bf16"] = plain(model, table, batch, given.device, bf16=True)
        sides["clsim"] = ours(model, table, batch, given.device)
        figures: dict[str, list[list[float]]] = {side: [[], []] for side in sides}
        for step, evaluate in sides.values():
            step()
            evaluate()
        for _ in range(rounds):
            for side, (step, evaluate) in sides.items():
                figures[side][0].append(rate(step, batch, given.device, times))
                figures[side][1].append(rate(evaluate, len(table), given.device, 1))
        print(f"{'':14}{'training':>12}{'evaluation':>12}{'busy':>8}   images/s")
        for side, (step, _) in sides.items():
            training, tested = map(statistics.median, figures[side])
            busy = f"{100 * busy_share(step, times):.0f} %" if given.device == "cuda" else "-"
            print(f"{side:14}{training:12.1f}{tested:12.1f}{busy:>8}")
    if given.data_dir is not None:
        fields = {"scenario.train_per_class": 1, "scenario.test_per_class": 1} if given.tiny else {}
        print(f"whole Split CIFAR-100, one epoch: {whole_stream(given.data_dir, given.device, fields):.0f} s")


if __name__ == "__main__":
    main()
