"""Training steps of CoOp, CoCoOp and DAPL against a plain implementation: ``python tests/benchmarks/clip_prompts.py``.

CLIP ViT-B/16's shapes with random weights, 65 classes. The plain implementation is written as published: float32, every
class's whole sequence of 77 tokens through the text tower, the image tower in the step. clsim reads the features of
its images from the bank, as in a run, cuts texts at their end, and computes once what classes share. Both sides take
turns; printed are medians, and the median of the ratios within a round. clsim is in bfloat16 where the processor has
it. The image tower, which clsim's steps do without, is measured separately: a run takes it once for each image, or K
times with ``views=K``, and for each method the ratio of whole runs is worked out from both.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from _loops import begun, update
from torch import Tensor, nn

from clsim import plugins
from clsim.backbones.clip import ClipVisionTower, TextTower
from clsim.backbones.load import Backbone
from clsim.data.batches import Batch
from clsim.data.streams import Benchmark, Experience
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec
from clsim.hardware import settled

# Office-Home's are as long: one or two words
WORDS = "alarm bottle bed bike bucket calendar candle chair clock computer couch curtain desk drill fan".split()  # noqa: SIM905
NAMES = (*WORDS, *(f"{WORDS[i % 15]} {WORDS[i % 13]}" for i in range(50)))


class Texts(nn.Module):
    """Whole sequences of class names after learned vectors, in open_clip's modules."""

    def __init__(self, clip: Any, length: int, ending: str = ".") -> None:
        super().__init__()
        self.clip, self.length = clip, length
        self.tokens = open_clip.get_tokenizer("ViT-B-16")([f"{'X ' * length}{name}{ending}" for name in NAMES])
        with torch.no_grad():
            self.words = clip.token_embedding(self.tokens)

    def forward(self, context: Tensor) -> Tensor:
        """(M,D) -> (K,E) unit features."""
        clip, length = self.clip, self.length
        x = torch.cat([self.words[:, :1], context.expand(len(NAMES), -1, -1), self.words[:, 1 + length :]], dim=1)
        x = clip.ln_final(clip.transformer(x + clip.positional_embedding, attn_mask=clip.attn_mask))
        x = x[torch.arange(len(x)), self.tokens.argmax(1)] @ clip.text_projection
        return nn.functional.normalize(x, dim=1)


class Plain(nn.Module):
    """CoOp and CoCoOp as published: one context for all images, or one for each."""

    def __init__(self, clip: Any, length: int, conditional: bool) -> None:
        super().__init__()
        self.clip = clip
        self.classes = Texts(clip, length)
        self.context = nn.Parameter(0.02 * torch.randn(length, 512))
        self.meta = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 512)) if conditional else None

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,224,224) -> (B,K) logits."""
        features = nn.functional.normalize(self.clip.encode_image(images), dim=1)
        if self.meta is None:
            logits: Tensor = 100 * features @ self.classes(self.context).T
            return logits
        shifts = self.meta(features)
        each = [100 * self.classes(self.context + s) @ f for f, s in zip(features, shifts, strict=True)]
        return torch.stack(each)


class PlainDapl(nn.Module):
    """DAPL as published: the words of both domains, source and target images through the image tower."""

    def __init__(self, clip: Any, length: int) -> None:
        super().__init__()
        self.clip = clip
        self.texts = nn.ModuleList(Texts(clip, 2 * length, f", a {domain} image.") for domain in ("art", "clipart"))
        self.context = nn.Parameter(0.02 * torch.randn(length, 512))
        self.domains = nn.Parameter(0.02 * torch.randn(2, length, 512))
        with torch.no_grad():
            self.fixed = Texts(clip, 0)(torch.empty(0, 512))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(2B,3,224,224), source before target -> (2B,2K) logits, (B,) pseudo labels."""
        features = nn.functional.normalize(self.clip.encode_image(images), dim=1)
        words = [torch.cat([self.context, domain]) for domain in self.domains]
        classes = torch.cat([texts(context) for texts, context in zip(self.texts, words, strict=True)])
        return 100 * features @ classes.T, (features[len(images) // 2 :] @ self.fixed.T).argmax(1)


def plain_step(name: str, size: int) -> Callable[[], None]:
    """A step of the plain implementation on `size` images, and as many of the target."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16").requires_grad_(False).eval()
    model = PlainDapl(clip, LENGTHS[name]) if name == "dapl" else Plain(clip, LENGTHS[name], name == "cocoop")
    images, labels = torch.randn((1 + (name == "dapl")) * size, 3, 224, 224), torch.arange(size) % 65
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 2e-3)

    def step() -> None:
        optimizer.zero_grad()
        found = model(images)
        if name == "dapl":
            logits, pseudo = found
            nn.functional.cross_entropy(logits, torch.cat([labels, pseudo + 65])).backward()
        else:
            nn.functional.cross_entropy(found, labels).backward()
        optimizer.step()

    return step


def our_step(name: str, size: int, fields: Mapping[str, Any]) -> Callable[[], None]:
    """A step of clsim's strategy as a run takes it."""
    torch.manual_seed(0)
    # no pseudo label of random weights is sure: with a threshold of 0 all of them are learned, as in the plain step
    strategy = plugins.load("strategies", name)(**fields, **({"threshold": 0.0} if name == "dapl" else {}))
    table = ImageTable.from_arrays(np.zeros((65, 3, 8, 8), np.uint8), np.arange(65), NAMES)
    experience = Experience(0, table, np.arange(65), tuple(range(65)), "random", unlabelled=np.arange(65))
    stream = (experience,)
    loop = begun(strategy, random_backbone(), Benchmark(stream, stream, "pair", domain_names=("art", "clipart")))
    target = Batch(None, torch.randn(size, 512)) if name == "dapl" else None
    batch = Batch(None, torch.randn(size, 512), torch.arange(size) % 65, target=target)

    def step() -> None:
        update(loop, batch)

    return step


def random_backbone() -> Backbone:
    """CLIP ViT-B/16 with random weights, frozen."""
    clip = open_clip.create_model("ViT-B-16")
    text = TextTower(clip, open_clip.get_tokenizer("ViT-B-16"))
    backbone = Backbone("random", ClipVisionTower(clip.visual, InputSpec(224)), text)
    for tower in backbone.towers():
        tower.requires_grad_(False).eval()
    return backbone


def feature_rate(size: int) -> float:
    """Images/s of the frozen image tower in a run's precision: what filling the bank costs."""
    _, precision = settled("cpu", "auto")
    tower = random_backbone().image.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    images = torch.randn(size, 3, 224, 224)

    @torch.no_grad()
    def step() -> None:
        tower(images)

    step()
    return size / seconds(step, 3)


def seconds(step: Callable[[], object], count: int) -> float:
    """Mean seconds of a step."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


LENGTHS = {"coop": 16, "cocoop": 4, "dapl": 16}  # learned vectors; dapl has as many again for each domain
SIZES = {"coop": 32, "cocoop": 1, "dapl": 32}  # images a step, as published
EPOCHS = 50  # of a run, over which what fills the bank is spread; CoOp's least
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "coop": [
        ("shared, end", {}), ("shared, middle", {"class_position": "middle"}),
        ("shared, front", {"class_position": "front"}), ("class-specific", {"class_specific": True}),
    ],
    "cocoop": [("end", {})],
    "dapl": [("shared", {}), ("class-specific", {"class_specific": True})],
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CLSIM_CACHE_DIR"] = cache  # of the banks: the weights are random
        measure(tuple(CASES) if given.only is None else (given.only,), given.rounds)


def measure(names: Sequence[str], rounds: int) -> None:
    """Measure the methods and print their lines."""
    per_view = 1 / feature_rate(32)
    print(f"features for the bank, once for each image or view: {1 / per_view:.2f} images/s")
    for name in names:
        size = SIZES[name]
        plain = plain_step(name, size)
        ours = {title: our_step(name, size, fields) for title, fields in CASES[name]}
        for step in ours.values():
            step()
        theirs: list[float] = []
        found: dict[str, list[float]] = {title: [] for title in ours}
        for _ in range(rounds):
            theirs.append(seconds(plain, 1))
            for title, step in ours.items():
                found[title].append(seconds(step, 3))
        print(f"{name}, {size} images a step, {torch.get_num_threads()} threads")
        print(f"  plain           {size / statistics.median(theirs):8.2f} images/s")
        for title, times in found.items():
            ratio = statistics.median(a / b for a, b in zip(theirs, times, strict=True))
            print(f"  {title:15} {size / statistics.median(times):8.2f} images/s, {ratio:.1f} times")
        slow, fast = statistics.median(theirs) / size, statistics.median(next(iter(found.values()))) / size
        domains = 2 if name == "dapl" else 1
        for views in (1, 4, 16):
            ratio = EPOCHS * slow / (EPOCHS * fast + domains * views * per_view)
            print(f"  {EPOCHS} epochs, the bank filled on the way, views={views}: {ratio:.1f} times")


if __name__ == "__main__":
    main()
