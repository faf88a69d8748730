"""Images/s that the input pipeline makes, and images/s that a small transformer takes.

    python tests/benchmarks/input_pipeline.py [--rounds 7] [--threads N]

The pipeline is clsim's own: decoded uint8 images of a table to augmented (or merely resized), normalised 224x224
batches. The images are 32x32, or photographs of 375x500 and 500x375, which are stored with 256 pixels on their shorter
side: training crops come from the whole photograph, evaluation sees the square in its centre. The consumer is
ViT-Tiny/16 at 224 with random weights, in bfloat16 where the processor has it: a training step of the whole tower, and
inference. Both use all threads, in turn; a ratio is the median over rounds of the ratio within a round.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from clsim.backbones.vit import VisionTower
from clsim.data.batches import as_tensors
from clsim.data.pixels import whole_size
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.data.whole import WholeImages
from clsim.hardware import settled

ROUND_SECONDS = 1.0  # each measurement repeats its work for about as long
CLASSES = 10


def images_per_second(work: Callable[[], object], batch: int) -> float:
    """Repeat `work`, a batch at a time, for a round."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < ROUND_SECONDS:
        work()
        done += batch
    return done / (time.perf_counter() - began)


def small_images() -> ImageTable:
    """5000 images of 32x32."""
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 32, 32), dtype=np.uint8)
    return ImageTable.from_arrays(images, np.arange(5000) % CLASSES, tuple(map(str, range(CLASSES))))


def photographs() -> ImageTable:
    """200 images of 375x500 and 500x375, as they are stored for towers of 224 pixels."""
    side = InputSpec(224).stored_side
    sizes = np.array([whole_size(*size, side) for size in ((375, 500), (500, 375))] * 100)
    content = np.random.default_rng(0).integers(0, 256, 3 * int(sizes.prod(axis=1).sum()), dtype=np.uint8)
    labels, names = np.arange(len(sizes)) % CLASSES, tuple(map(str, range(CLASSES)))
    return ImageTable(WholeImages(content, sizes, side), labels, names, "photographs")


def pipeline(table: ImageTable, batch: int) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Functions that make an augmented batch, and a clean one, of random rows of a table."""
    draw, cpu = np.random.default_rng(0), torch.device("cpu")
    pixels, how, generator = InputSpec(224), Augmentation(), torch.Generator().manual_seed(0)

    def rows() -> NDArray[np.int64]:
        return draw.integers(0, len(table), batch)

    return (
        lambda: augmented(as_tensors(table.whole(rows()), cpu), pixels, how, generator),
        lambda: evaluation(torch.from_numpy(table.pixels(rows())), pixels),
    )


def tiny_tower() -> VisionTower:
    """ViT-Tiny/16 with random weights."""
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    assert isinstance(vit, VisionTransformer)
    return VisionTower(vit, InputSpec(224))


def consumer(images: torch.Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that train ViT-Tiny/16 for one step on a batch that is there already, and that run it."""
    tower = tiny_tower()
    head = torch.nn.Linear(tower.out_dim, CLASSES)
    optimizer = torch.optim.SGD([*tower.parameters(), *head.parameters()], 1e-4)
    labels = torch.arange(len(images)) % CLASSES
    bf16 = settled("cpu", "auto")[1] == "bf16"
    frozen = tiny_tower().requires_grad_(False).to(torch.bfloat16 if bf16 else torch.float32)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = head(tower(images)).float()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        frozen(images)

    return train, infer


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch (default 32)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    makes: dict[str, Callable[[], torch.Tensor]] = {}
    for kind, table in (("32x32", small_images()), ("photographs", photographs())):
        makes[f"{kind}, augmented"], makes[f"{kind}, clean"] = pipeline(table, options.batch_size)
    takes = dict(zip(("training", "inference"), consumer(makes["32x32, augmented"]()), strict=True))
    works: dict[str, Callable[[], object]] = {**makes, **takes}
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(options.rounds):
        for name, work in works.items():
            found[name].append(images_per_second(work, options.batch_size))
    print(f"torch {torch.__version__}, {options.threads} threads, batches of {options.batch_size}")
    for make in makes:
        take = "training" if "augmented" in make else "inference"
        ratio = median(a / b for a, b in zip(found[make], found[take], strict=True))
        print(
            f"input pipeline, {make}: {median(found[make]):.0f} images/s; ViT-Tiny/16 in {take}: "
            f"{median(found[take]):.0f} images/s; ratio {ratio:.1f}"
        )


if __name__ == "__main__":
    main()
