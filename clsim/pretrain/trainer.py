"""What pretrainings share: optimizers, the learning rate, steps, checkpoints."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clsim import checkpoint
from clsim.backbones.towers import Tower
from clsim.errors import RequestError


class Recipe(Protocol):
    """What a recipe, a frozen dataclass, has for its optimisation."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def lr(self) -> float:
        """The peak learning rate of the blocks' matrices; half of it is that of the other weights."""

    @property
    def weight_decay(self) -> float:
        """Of every weight but biases and norms."""

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak."""


def make_optimizers(modules: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings, biases, norms and heads.

    `recipe` has the peak `lr` (half of it for AdamW) and `weight_decay`.
    """
    named = list(modules.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "blocks" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
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
class Trainer:
    """Steps of an optimisation that can be interrupted: repeated, it goes on from its last checkpoint to the same bits.

    Raises RequestError if `out` holds a checkpoint of another recipe.
    """

    recipe: Recipe
    modules: nn.Module
    steps: int
    out: Path
    say: Callable[[str], None] = print
    step: int = 0
    seconds: float = 0.0
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = make_optimizers(self.modules, self.recipe)
        self._peaks = [[group["lr"] for group in opt.param_groups] for opt in self.optimizers]
        if (self.out / "state.json").exists():
            self._resume()

    def run(self, loss_of: Callable[[int], Tensor], after: Callable[[int], None], stop: int | None = None) -> None:
        """Take the steps that are left, up to `stop` or the end, with a checkpoint every 100 steps and at the last.

        `loss_of(step)` gives the loss to minimise, `after(steps taken)` is called after each step.
        """
        began, losses = time.perf_counter(), []
        last = self.steps if stop is None else stop
        while self.step < last:
            losses.append(self._take(loss_of))
            if self.step % 100 == 0 or self.step == last:
                now = time.perf_counter()
                self.seconds, began = self.seconds + now - began, now
                self.say(f"step {self.step}/{self.steps}: loss {np.mean(losses):.3f}, {self.seconds:.0f} s")
                losses.clear()
                self._keep()
            after(self.step)

    def _take(self, loss_of: Callable[[int], Tensor]) -> float:
        factor = learning_rate_factor(self.step, self.steps, self.recipe.warmup_steps)
        for opt, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(opt.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        loss = loss_of(self.step)
        for opt in self.optimizers:
            opt.zero_grad()
        loss.backward()
        for opt in self.optimizers:
            opt.step()
        self.step += 1
        return loss.item()

    def _keep(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "modules": self.modules.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers],
        }
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.out, state)

    def _resume(self) -> None:
        saved = checkpoint.load(self.out)
        if saved["recipe"] != json.loads(json.dumps(asdict(self.recipe))):  # JSON has no tuples
            raise RequestError(f"{self.out} holds a pretraining with another recipe: {saved['recipe']}")
        self.modules.load_state_dict(saved["modules"])
        for opt, state in zip(self.optimizers, saved["optimizers"], strict=True):
            opt.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.say(f"going on from step {self.step} of {self.steps}")


def save_half(model: nn.Module, file: Path) -> Path:
    """Write the model's tensors as safetensors, numbers in half precision; the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()}, file)
    return file


def features_with_drop(tower: Tower, images: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """(B,3,S,S) -> (B,D), each image seen through the class token and a random (1 - drop) of its patch tokens."""
    if drop == 0:
        features: Tensor = tower(images)
        return features
    tokens = tower.embed(images)
    batch, length, width = tokens.shape
    keep = round((length - 1) * (1 - drop))
    chosen = torch.rand(batch, length - 1, generator=generator).argsort(dim=1)[:, :keep] + 1
    patches = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    return tower.pool(tower.encode(torch.cat([tokens[:, :1], patches], dim=1), slice(0, 1)))
