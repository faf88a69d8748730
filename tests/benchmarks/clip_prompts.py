"""Training steps of CoOp and CoCoOp against a plain implementation: ``python tests/benchmarks/clip_prompts.py``.

CLIP ViT-B/16's shapes with random weights, 65 classes. The plain implementation is written as published: float32, every
class's whole sequence of 77 tokens through the text tower, the image tower in the step. clsim reads the features of
its images from the bank, as in a run, cuts texts at their end, and computes once what classes share. Both sides take
turns; printed are medians, and the median of the ratios within a round.
"""

import argparse
import statistics
import time

import open_clip
import torch
from torch import Tensor, nn

from clsim import plugins
from clsim.backbones.clip import ClipVisionTower, TextTower
from clsim.backbones.load import Backbone
from clsim.data.batches import Batch
from clsim.data.streams import Info
from clsim.data.transforms import Pixels

# Office-Home's are as long: one or two words
WORDS = "alarm bottle bed bike bucket calendar candle chair clock computer couch curtain desk drill fan".split()  # noqa: SIM905
NAMES = (*WORDS, *(f"{WORDS[i % 15]} {WORDS[i % 13]}" for i in range(50)))


class Plain(nn.Module):
    """CoOp and CoCoOp as published, in open_clip's modules: contexts (B,M,D), or one for all images."""

    def __init__(self, clip: nn.Module, length: int, conditional: bool) -> None:
        super().__init__()
        self.clip = clip
        tokens = open_clip.get_tokenizer("ViT-B-16")([f"{' '.join(['X'] * length)} {name}." for name in NAMES])
        self.tokens, self.length = tokens, length
        with torch.no_grad():
            self.words = clip.token_embedding(tokens)
        self.context = nn.Parameter(0.02 * torch.randn(length, 512))
        self.meta = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 512)) if conditional else None

    def classes(self, context: Tensor) -> Tensor:
        """(M,D) -> (K,E) unit features of whole sequences."""
        clip, length = self.clip, self.length
        x = torch.cat([self.words[:, :1], context.expand(len(NAMES), -1, -1), self.words[:, 1 + length :]], dim=1)
        x = clip.ln_final(clip.transformer(x + clip.positional_embedding, attn_mask=clip.attn_mask))
        x = x[torch.arange(len(x)), self.tokens.argmax(1)] @ clip.text_projection
        return nn.functional.normalize(x, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,224,224) -> (B,K) logits."""
        features = nn.functional.normalize(self.clip.encode_image(images), dim=1)
        if self.meta is None:
            return 100 * features @ self.classes(self.context).T
        shifts = self.meta(features)
        return torch.stack([100 * self.classes(self.context + s) @ f for f, s in zip(features, shifts, strict=True)])


def plain_step(length: int, size: int, conditional: bool):
    """A step of the plain implementation, images/s of `size` images."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16").requires_grad_(False).eval()
    model = Plain(clip, length, conditional)
    images, labels = torch.randn(size, 3, 224, 224), torch.arange(size) % 65
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 2e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def our_step(name: str, size: int, **fields):
    """A step of clsim's strategy as a run on a machine with bfloat16 takes it."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16")
    text = TextTower(clip, open_clip.get_tokenizer("ViT-B-16"))
    backbone = Backbone("random", ClipVisionTower(clip.visual, Pixels(224)), text)
    for tower in backbone.towers():
        tower.requires_grad_(False).eval()
    strategy = plugins.load("strategies", name)(**fields)
    learner = strategy.build(backbone, Info(NAMES, (), "class", 1))
    text.to(torch.bfloat16)
    batch = Batch(None, torch.randn(size, 512), torch.arange(size) % 65)
    optimizer = strategy.configure_optimizer(learner)
    learner.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner(batch).float()
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step()

    return step


def seconds(step, count: int) -> float:
    """Mean seconds of a step."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


CASES = {
    "coop": [
        ("shared, end", {}), ("shared, middle", {"class_position": "middle"}),
        ("shared, front", {"class_position": "front"}), ("class-specific", {"class_specific": True}),
    ],
    "cocoop": [("end", {})],
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    given = parser.parse_args()
    for name in CASES if given.only is None else (given.only,):
        size, length = (32, 16) if name == "coop" else (1, 4)
        plain = plain_step(length, size, conditional=name == "cocoop")
        ours = {title: our_step(name, size, **fields) for title, fields in CASES[name]}
        for step in ours.values():
            step()
        theirs, found = [], {title: [] for title in ours}
        for _ in range(given.rounds):
            theirs.append(seconds(plain, 1))
            for title, step in ours.items():
                found[title].append(seconds(step, 3))
        print(f"{name}, {size} images a step, {torch.get_num_threads()} threads")
        print(f"  plain           {size / statistics.median(theirs):8.2f} images/s")
        for title, times in found.items():
            ratio = statistics.median(a / b for a, b in zip(theirs, times, strict=True))
            print(f"  {title:15} {size / statistics.median(times):8.2f} images/s, {ratio:.1f} times")


if __name__ == "__main__":
    main()
