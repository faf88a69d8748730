"""`clsim pretrain`: make a bundled backbone from public images, again and from the start.

The same command on the same machine with the same thread count writes the same file; interrupted, it goes on from
its last checkpoint when repeated.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from clsim import checkpoint, config, rng
from clsim.backbones.features import FeatureBank
from clsim.backbones.load import load_backbone
from clsim.backbones.vit import VisionTower, micro_vit
from clsim.data.streams import DataAccess
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, Pixels, augmented, evaluation
from clsim.errors import RequestError, unknown
from clsim.parts.heads import PrototypeHead


@dataclass(frozen=True)
class Recipe:
    """How vit_micro is pretrained: classification, Muon for matrices and AdamW for the rest."""

    epochs: int = 8
    batch_size: int = 256
    lr: float = 4e-3  # peak; linear warm-up, then linear to zero
    warmup_steps: int = 200
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop_min: float = 0.35  # smallest share of the area that a training crop keeps
    token_drop: float = 0.5  # share of patch tokens left out in training (Li et al. 2023, arXiv:2212.00794) ...
    whole_share: float = 0.25  # ... but for this last share of the steps
    seed: int = 0


def features_with_drop(tower: VisionTower, images: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """(B,3,S,S) -> (B,D), each image seen through a random (1 - drop) of its patch tokens."""
    if drop == 0:
        features: Tensor = tower(images)
        return features
    tokens = tower.embed(images)
    prefix = tower.vit.num_prefix_tokens
    batch, length, width = tokens.shape
    keep = round((length - prefix) * (1 - drop))
    chosen = torch.rand(batch, length - prefix, generator=generator).argsort(dim=1)[:, :keep] + prefix
    patches = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    return tower.encode(torch.cat([tokens[:, :prefix], patches], dim=1), slice(0, 1))[:, 0]


def make_optimizers(model: nn.Module, head: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings, biases, norms and the head."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in [*model.parameters(), *head.parameters()] if id(p) not in chosen]
    decayed = [p for p in rest if p.ndim > 1 and p.shape[0] > 1]
    plain = [p for p in rest if p.ndim <= 1 or p.shape[0] == 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=recipe.lr / 2, betas=(0.9, 0.98), weight_decay=recipe.weight_decay),
    ]


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from zero over `warmup` steps, then linear back to zero at `steps`."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


@dataclass
class Pretraining:
    """vit_micro under training: what a checkpoint holds, and one step of it."""

    recipe: Recipe
    train: ImageTable
    valid: ImageTable
    out: Path
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        torch.manual_seed(rng.derive(self.recipe.seed, "initialisation"))
        self.tower = VisionTower(micro_vit(), Pixels(size=32, crop=1.0))
        self.tower.vit.train()
        self.head = nn.Linear(self.tower.out_dim, len(self.train.class_names))
        self.optimizers = make_optimizers(self.tower, self.head, self.recipe)
        self.peaks = [[group["lr"] for group in opt.param_groups] for opt in self.optimizers]
        self.per_epoch = len(self.train) // self.recipe.batch_size
        self.steps = self.recipe.epochs * self.per_epoch
        self.step, self.seconds = 0, 0.0
        if (self.out / "state.json").exists():
            self.resume()

    def run(self) -> Path:
        """Train to the end, with a checkpoint every 100 steps; the weights file."""
        began, losses = time.perf_counter(), []
        while self.step < self.steps:
            losses.append(self.learn(self.rows()))
            self.step += 1
            if self.step % 100 == 0 or self.step == self.steps:
                now = time.perf_counter()
                self.seconds, began = self.seconds + now - began, now
                self.say(f"step {self.step}/{self.steps}: loss {np.mean(losses):.3f}, {self.seconds:.0f} s")
                losses.clear()
                self.keep()
            if self.step % self.per_epoch == 0:
                share = accuracy(self.tower, self.head, self.valid)
                self.say(f"epoch {self.step // self.per_epoch}: validation accuracy {share:.4f}")
        weights = {k: t.half() if t.is_floating_point() else t for k, t in self.tower.vit.state_dict().items()}
        save_file(weights, self.out / "vit_micro.safetensors")
        return self.out / "vit_micro.safetensors"

    def rows(self) -> NDArray[np.int64]:
        """(batch_size,) rows of this step, ascending: the table is read from a file."""
        epoch, start = divmod(self.step, self.per_epoch)
        order = torch.randperm(len(self.train), generator=rng.generator(self.recipe.seed, "data order", epoch))
        return np.sort(order[start * self.recipe.batch_size : (start + 1) * self.recipe.batch_size].numpy())

    def learn(self, rows: NDArray[np.int64]) -> float:
        """One update; the loss."""
        recipe = self.recipe
        factor = learning_rate_factor(self.step, self.steps, recipe.warmup_steps)
        for opt, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(opt.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        draw = rng.generator(recipe.seed, "augmentation", self.step)
        images = torch.from_numpy(np.take(self.train.images, rows, axis=0))
        images = augmented(images, self.tower.pixels, Augmentation(recipe.crop_min), draw)
        drop = recipe.token_drop if self.step < (1 - recipe.whole_share) * self.steps else 0.0
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.head(features_with_drop(self.tower, images, drop, draw)).float()
        labels = torch.from_numpy(self.train.labels[rows])
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        for opt in self.optimizers:
            opt.zero_grad()
        loss.backward()
        for opt in self.optimizers:
            opt.step()
        return loss.item()

    def keep(self) -> None:
        """Write a checkpoint."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "tower": self.tower.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers],
        }
        checkpoint.save(self.out, state)

    def resume(self) -> None:
        """Go on from the checkpoint in `out`. Raises RequestError if it belongs to another recipe."""
        saved = checkpoint.load(self.out)
        if saved["recipe"] != asdict(self.recipe):
            raise RequestError(f"{self.out} holds a pretraining with another recipe: {saved['recipe']}")
        self.tower.load_state_dict(saved["tower"])
        self.head.load_state_dict(saved["head"])
        for opt, state in zip(self.optimizers, saved["optimizers"], strict=True):
            opt.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.say(f"going on from step {self.step} of {self.steps}")


@torch.no_grad()
def accuracy(tower: VisionTower, head: nn.Module, table: ImageTable) -> float:
    """Share of the table's images that tower and head classify rightly."""
    tower.vit.eval()
    correct = 0
    for start in range(0, len(table), 500):
        images = evaluation(torch.from_numpy(np.array(table.images[start : start + 500])), tower.pixels)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = head(tower(images)).argmax(1).numpy()
        correct += int((predicted == table.labels[start : start + 500]).sum())
    tower.vit.train()
    return correct / len(table)


def quality(tower: VisionTower, train: ImageTable, test: ImageTable, cache_dir: Path) -> dict[str, float]:
    """Linear probe and nearest class mean on features of a frozen tower: shares of `test` classified rightly."""
    device = torch.device("cpu")
    found = []
    for table in (train, test):
        bank = FeatureBank(tower, table, device, cache_dir)
        found.append((bank.rows(np.arange(len(table))), torch.from_numpy(table.labels)))
    (x, y), (x_test, y_test) = found
    prototypes = PrototypeHead(x.shape[1], len(train.class_names))
    prototypes.add(x, y)
    nearest_mean = (prototypes(x_test).argmax(1) == y_test).float().mean().item()
    return {"linear_probe": _linear_probe(x, y, x_test, y_test), "nearest_class_mean": nearest_mean}


def _linear_probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Logistic regression on standardised features: 50 epochs of AdamW, cosine, the last epoch's accuracy."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    torch.manual_seed(0)
    head = nn.Linear(x.shape[1], int(y.max()) + 1)
    opt = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = 50 * -(-len(x) // 512)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (512,))
        opt.zero_grad()
        nn.functional.cross_entropy(head(x[rows]), y[rows]).backward()
        opt.step()
        schedule.step()
    return float((head(x_test).argmax(1) == y_test).float().mean())


def main(name: str, *, data_dir: Path | None, out: Path, fields: dict[str, Any]) -> Path:
    """`clsim pretrain NAME`: train, then write weights and, beside them, the recipe and the measured quality."""
    if name != "vit_micro":
        raise unknown("backbone to pretrain", name, ["vit_micro"])
    recipe = config.make(Recipe, fields, name)
    folder = out / "pretrain" / name
    cache_dir = config.cache_dir()
    access = DataAccess(data_dir, cache_dir, side=32)

    def table(folder: str, split: str, image: str, label: str) -> ImageTable:
        return access.table(access.parquet(folder, split, image, label), "stop")

    train, valid = (table("tiny_imagenet_32", split, "image", "label") for split in ("train", "valid"))
    job = Pretraining(recipe, train, valid, folder)
    weights = job.run()
    tower = load_backbone(name, weights).image.to(torch.bfloat16)
    train, test = (table("cifar100", split, "img", "fine_label") for split in ("train", "test"))
    probe = quality(tower, train, test, cache_dir)
    report = {
        "command": f"clsim pretrain {name} --data-dir DATA",
        "data": "Tiny-ImageNet at 32x32, 100,000 images of 200 classes",
        "recipe": asdict(recipe),
        "seconds": round(job.seconds),
        "threads": torch.get_num_threads(),
        "quality": {
            "tiny_imagenet_validation_accuracy": accuracy(job.tower, job.head, valid),
            "cifar100_linear_probe": probe["linear_probe"],
            "cifar100_nearest_class_mean": probe["nearest_class_mean"],
        },
    }
    checkpoint.write_text(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["quality"], indent=1))
    return weights
