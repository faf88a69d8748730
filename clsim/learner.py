"""A strategy's learner: how it is built, grown for each experience, and saved without its frozen towers."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from clsim import checked, rng
from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower
from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.errors import RequestError
from clsim.strategy import Strategy


def build_learner(
    strategy: Strategy, backbone: Backbone, info: StreamInfo, seed: int, device: torch.device, bf16: bool
) -> tuple[nn.Module, Tower | None]:
    """The learner, initialised from its own random stream, and the image tower for the feature bank if one is used.

    If the run computes in bfloat16, towers that stay frozen are kept in it, so nothing is cast at each step.
    """
    checked.require_build(strategy, Strategy)
    reads = checked.inputs(strategy)
    image = backbone.image
    image.pixels = strategy.inputs_of(image.pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "initialisation"))
        with checked.MemoryLimit(type(strategy).__name__):
            learner = checked.module(strategy, strategy.build(backbone, info))
    checked.watch_outputs(learner, info.num_classes)
    bank_tower = None
    if "features" in reads:
        bank_tower = image if _frozen(image) else copy.deepcopy(image).requires_grad_(False)
        bank_tower.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    for tower in backbone.towers():
        if bf16 and _frozen(tower):
            tower.to(torch.bfloat16)
    return learner.to(device), bank_tower


def begin(strategy: Strategy, learner: nn.Module, experience: ExperienceInfo, seed: int, device: torch.device) -> None:
    """Let the strategy prepare its learner for an experience; random numbers come from the experience's own stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "begin", experience.index))
        strategy.begin(learner, experience)
    learner.to(device)  # parameters that were just added


def replay(
    strategy: Strategy, learner: nn.Module, experiences: Sequence[ExperienceInfo], seed: int, device: torch.device
) -> None:
    """Call `begin` for these experiences, so that a new learner has the right shape; its weights are loaded next."""
    for experience in experiences:
        begin(strategy, learner, experience, seed, device)


def _frozen(tower: Tower) -> bool:
    return not any(p.requires_grad for p in tower.parameters())


def learner_state(learner: nn.Module) -> dict[str, torch.Tensor]:
    """The learner's tensors, without frozen towers (the backbone's name is enough to load them)."""
    frozen: set[str] = set()
    for prefix, module in learner.named_modules(remove_duplicate=False):  # two parts may share a tower
        if isinstance(module, Tower):
            inside = {f"{prefix}.{name}" for name in module.state_dict()}
            frozen |= inside - {f"{prefix}.{name}" for name, p in module.named_parameters() if p.requires_grad}
    return {name: tensor for name, tensor in learner.state_dict().items() if name not in frozen}


def load_learner(learner: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state from `learner_state` into the learner. Raises RequestError if it is from another learner."""
    # since the learner was made, a strategy may have unfrozen more of a tower, but never less
    strange = (learner_state(learner).keys() - state.keys()) | (state.keys() - learner.state_dict().keys())
    if strange:
        raise RequestError(
            f"the saved weights are from another learner ({min(strange)}). If its code has changed, use --fresh. "
            "If it grows, add the new parameters in `begin`, which is called again on resuming and loading"
        )
    learner.load_state_dict(state, strict=False)
