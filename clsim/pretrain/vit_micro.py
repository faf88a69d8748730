"""vit_micro: a small ViT that learned to classify Tiny-ImageNet at 32x32."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clsim import checkpoint, rng
from clsim.backbones.features import FeatureBank, View
from clsim.backbones.load import load_backbone
from clsim.backbones.towers import Tower
from clsim.backbones.vit import VisionTower, micro_vit
from clsim.data.batches import as_tensors
from clsim.data.streams import DataAccess
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, augmented, evaluation
from clsim.parts.heads import PrototypeHead
from clsim.pretrain.teacher import Lessons, efficientnet_lite0
from clsim.pretrain.trainer import Trainer, features_with_drop, save_half


@dataclass(frozen=True)
class Recipe:
    """How vit_micro is pretrained: classification, Muon for matrices and AdamW for the rest.

    With `views`, it also learns from a teacher, EfficientNet-Lite0: to predict the teacher's features, and through them
    the answers of the teacher's own classifier (Chen et al. 2022, arXiv:2203.14001).
    """

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
    views: int = 0  # augmented views of each image that the teacher describes; 0: no teacher
    teacher_size: int = 160  # side of the teacher's images
    labels: float = 1.0  # weight of the cross-entropy with the labels
    features: float = 1.0  # weight of 1 - cosine between predicted and true features of the teacher
    answers: float = 1.0  # weight of the divergence of the teacher's answers from those to the predicted features


class Pretraining:
    """vit_micro under training."""

    def __init__(
        self,
        recipe: Recipe,
        train: ImageTable,
        valid: ImageTable,
        out: Path,
        say: Callable[[str], None] = print,
        lessons: Lessons | None = None,
    ) -> None:
        """Goes on from the checkpoint in `out`, if there is one. Raises RequestError if it has another recipe."""
        self.recipe, self.train, self.valid, self.say, self.lessons = recipe, train, valid, say, lessons
        torch.manual_seed(rng.derive(recipe.seed, "initialisation"))
        self.tower = VisionTower(micro_vit(), InputSpec(size=32, crop=1.0))
        self.tower.vit.train()
        self.head = nn.Linear(self.tower.out_dim, len(train.class_names))
        self.per_epoch = len(train) // recipe.batch_size
        modules = nn.ModuleDict({"tower": self.tower, "head": self.head})
        if lessons is not None:
            self.imitation = modules["imitation"] = nn.Linear(self.tower.out_dim, lessons.teacher.out_dim)
        self.trainer = Trainer(recipe, modules, recipe.epochs * self.per_epoch, out, say)

    def run(self, stop: int | None = None) -> Path:
        """Train to the end, or to step `stop`; the weights file."""
        self.trainer.run(self.loss, self._after, stop)
        return save_half(self.tower.vit, self.trainer.out / "vit_micro.safetensors")

    def loss(self, step: int) -> Tensor:
        """Cross-entropy of a step's batch, and the distance from the teacher if there is one."""
        recipe, rows = self.recipe, self.rows(step)
        draw = rng.generator(recipe.seed, "augmentation", step)
        taught: Tensor | None = None
        if self.lessons is not None:
            images, taught = self.lessons.batch(step // self.per_epoch % recipe.views, rows, self.tower.pixels)
        else:
            whole = as_tensors(self.train.whole(rows), torch.device("cpu"))
            images = augmented(whole, self.tower.pixels, Augmentation(recipe.crop_min), draw)
        drop = recipe.token_drop if step < (1 - recipe.whole_share) * self.trainer.steps else 0.0
        with torch.autocast("cpu", torch.bfloat16):
            features = features_with_drop(self.tower, images, drop, draw)
            logits = self.head(features).float()
        labels = torch.from_numpy(self.train.labels[rows])
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        return loss if taught is None else recipe.labels * loss + self._distance(features, taught)

    def _distance(self, features: Tensor, taught: Tensor) -> Tensor:
        """(B,D) features of the student and (B,E) of the teacher -> a scalar."""
        assert self.lessons is not None
        classifier = self.lessons.teacher.classifier
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.imitation(features).float()
            said, true = (classifier(each.to(classifier.weight.dtype)).float() for each in (predicted, taught))
        cosine = nn.functional.cosine_similarity(predicted, taught).mean()
        answers = nn.functional.kl_div(said.log_softmax(1), true.log_softmax(1), log_target=True, reduction="batchmean")
        return self.recipe.features * (1 - cosine) + self.recipe.answers * answers

    def rows(self, step: int) -> NDArray[np.int64]:
        """(batch_size,) rows of this step, ascending: the table is read from a file."""
        epoch, start = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.train), generator=rng.generator(self.recipe.seed, "data order", epoch))
        return np.sort(order[start * self.recipe.batch_size : (start + 1) * self.recipe.batch_size].numpy())

    def _after(self, steps: int) -> None:
        if steps % self.per_epoch == 0:
            share = accuracy(self.tower, self.head, self.valid)
            self.say(f"epoch {steps // self.per_epoch}: validation accuracy {share:.4f}")


@torch.no_grad()
def accuracy(tower: VisionTower, head: nn.Module, table: ImageTable) -> float:
    """Share of the table's images that tower and head classify correctly."""
    tower.vit.eval()
    correct = 0
    for start in range(0, len(table), 500):
        rows = np.arange(start, min(start + 500, len(table)))
        images = evaluation(torch.from_numpy(table.pixels(rows)), tower.pixels)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = head(tower(images)).argmax(1).numpy()
        correct += int((predicted == table.labels[start : start + 500]).sum())
    tower.vit.train()
    return correct / len(table)


def quality(tower: Tower, train: ImageTable, test: ImageTable, cache_dir: Path) -> dict[str, float]:
    """Linear probe and nearest class mean on features of a frozen tower: shares of `test` classified correctly."""
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


def pretrain(recipe: Recipe, access: DataAccess, folder: Path) -> Path:
    """Train, then write the weights into `folder`, with the recipe and the measured quality in a JSON file."""

    def table(folder: str, split: str, image: str, label: str) -> ImageTable:
        return access.table(access.parquet(folder, split, image, label), "stop")

    train, valid = (table("tiny_imagenet_32", split, "image", "label") for split in ("train", "valid"))
    lessons = None
    if recipe.views:
        views = [View(number, Augmentation(recipe.crop_min)) for number in range(recipe.views)]
        lessons = Lessons(efficientnet_lite0(recipe.teacher_size), train, views, access.cache_dir)
    job = Pretraining(recipe, train, valid, folder, lessons=lessons)
    weights = job.run()
    tower = load_backbone("vit_micro", weights).image.to(torch.bfloat16)
    train, test = (table("cifar100", split, "img", "fine_label") for split in ("train", "test"))
    probe = quality(tower, train, test, access.cache_dir)
    report = {
        "command": "clsim pretrain vit_micro --data-dir DATA",
        "data": "Tiny-ImageNet at 32x32, 100,000 images of 200 classes",
        "recipe": asdict(recipe),
        "seconds": round(job.trainer.seconds),
        "threads": torch.get_num_threads(),
        "quality": {
            "tiny_imagenet_validation_accuracy": accuracy(job.tower, job.head, valid),
            "cifar100_linear_probe": probe["linear_probe"],
            "cifar100_nearest_class_mean": probe["nearest_class_mean"],
        },
    }
    checkpoint.write_text(weights.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["quality"], indent=1))
    return weights
