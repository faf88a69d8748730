"""A strategy's learner: built, grown from experience to experience, and saved without what is frozen."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from clsim import rng
from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.errors import RequestError
from clsim.strategy import Strategy


def build_learner(
    strategy: Strategy, backbone: Backbone, info: StreamInfo, seed: int, device: torch.device, bf16: bool
) -> tuple[nn.Module, Tower | None]:
    """The learner, initialised from its own random stream, and the image tower for the feature bank where one is read.

    Towers that stay frozen are kept in bfloat16 where the run computes in it: nothing has to be cast at each step.
    """
    image = backbone.image
    image.pixels = replace(image.pixels, interpolation=strategy.interpolation)
    if not strategy.normalise:
        image.pixels = replace(image.pixels, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "initialisation"))
        learner = strategy.build(backbone, info)
    bank_tower = None
    if "features" in strategy.reads():
        bank_tower = image if _frozen(image) else copy.deepcopy(image).requires_grad_(False)
        bank_tower.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    for tower in backbone.towers():
        if bf16 and _frozen(tower):
            tower.to(torch.bfloat16)
    return learner.to(device), bank_tower


def begin(strategy: Strategy, learner: nn.Module, experience: ExperienceInfo, seed: int, device: torch.device) -> None:
    """Let the strategy prepare its learner for an experience, with random numbers of the experience's own stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "begin", experience.index))
        strategy.begin(learner, experience)
    learner.to(device)  # what was added now


def replay(
    strategy: Strategy, learner: nn.Module, experiences: Sequence[ExperienceInfo], seed: int, device: torch.device
) -> None:
    """Give a new learner the shape that it had after beginning these experiences; its weights are loaded next."""
    for experience in experiences:
        begin(strategy, learner, experience, seed, device)


def _frozen(tower: Tower) -> bool:
    return not any(p.requires_grad for p in tower.parameters())


def learner_state(learner: nn.Module) -> dict[str, torch.Tensor]:
    """The learner's tensors without those of frozen towers, which the backbone's name stands for."""
    frozen: set[str] = set()
    for prefix, module in learner.named_modules(remove_duplicate=False):  # two parts may share a tower
        if isinstance(module, Tower):
            inside = {f"{prefix}.{name}" for name in module.state_dict()}
            frozen |= inside - {f"{prefix}.{name}" for name, p in module.named_parameters() if p.requires_grad}
    return {name: tensor for name, tensor in learner.state_dict().items() if name not in frozen}


def load_learner(learner: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy what `learner_state` gave into place. Raises RequestError if it is another learner's."""
    # a strategy may have let more of a tower learn since the learner was made, but never less
    strange = (learner_state(learner).keys() - state.keys()) | (state.keys() - learner.state_dict().keys())
    if strange:
        raise RequestError(
            f"the saved weights are of another learner ({min(strange)}). Has its code changed? --fresh starts again. "
            "Does it grow? What grows must be added in `begin`, which is repeated on resuming and loading"
        )
    learner.load_state_dict(state, strict=False)
