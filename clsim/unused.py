"""What is set and changes nothing in a run: fields of a strategy, a preset. It is refused by name, or said."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from clsim import checked, plugins
from clsim.config import RunConfig
from clsim.errors import RequestError
from clsim.field_values import defaults
from clsim.learner import begin, build_learner
from clsim.strategy import Strategy, rate_fields

if TYPE_CHECKING:
    from clsim.data.streams import StreamInfo
    from clsim.runner import Job

RATES = ("head_lr", "backbone_lr")
NO_STEPS = "it takes no training steps, in which images could be replayed"
ALONE = "it learns one experience, and the part needs an earlier one"


def refuse(job: Job, request: Sequence[RunConfig], prepare: Callable[[RunConfig], Job]) -> list[str]:
    """Raises RequestError for a field or part that is given for `job`, if no strategy for which it is given uses it.

    So ``--strategy ncm,linear lr=0.1`` is right, and ``--strategy ncm lr=0.1`` is a mistake. Values of presets, of
    files of settings and of defaults are never refused, except a learning rate that is not the one used: ``lr`` next to
    a positive ``lr_base``. Nor are `epochs` and `batch_size` refused, which are options of every run. Returns sentences
    for what only other strategies of the request use. `prepare` makes the job of another strategy.
    """
    strategy, notes = plugins.short_name(job.config.strategy), []
    others = {each.strategy: each for each in request if each.strategy != job.config.strategy}.values()
    for name, why in _unused(job).items():
        text = f"{name}={job.config.strategy_fields[name]} has no effect on {strategy}: {why}"
        if not any(name in each.written and _uses(each, name, job.benchmark.info, prepare) for each in others):
            raise RequestError(text if ";" in why else f"{text}; leave it out")
        notes.append(text)
    if not job.strategy.has_gradients and not any(each.make_strategy().has_gradients for each in others):
        for text in _with(job, "replays"):
            raise RequestError(f"--with {text} has no effect on {strategy}: {NO_STEPS}; leave it out")
    return [*notes, *_notes(job, request)]


def _notes(job: Job, request: Sequence[RunConfig]) -> list[str]:
    """What has no effect on a strategy and is no mistake, e.g. because one command runs many strategies."""
    strategy, notes = plugins.short_name(job.config.strategy), []
    learned = job.config.make_strategy().experiences(job.benchmark.train_stream)
    if not job.strategy.has_gradients:
        notes += [f"--with {text} has no effect on {strategy}: {NO_STEPS}" for text in _with(job, "replays")]
    elif len(learned) == 1 and learned[0].boundary:
        notes += [f"--with {text} has no effect on {strategy}: {ALONE}" for text in _with(job, "needs_earlier")]
    epochs = job.strategy.epochs
    if "epochs" in job.config.written and epochs > 1 and all(each.ordered for each in learned):
        notes.append(f"epochs={epochs} has no effect: the images of this stream arrive once, so they are learned once")
    presets = {each.preset for each in request} - {None}
    if presets and job.config.preset is None:
        notes.append(f"{strategy} has no preset {presets.pop()!r}: it runs with its defaults")
    return notes


def _with(job: Job, trait: str) -> list[str]:
    """The parts of --with that have a trait: a class variable that is true."""
    return [text for text, part in zip(job.config.parts, job.parts, strict=True) if getattr(part, trait, False)]


def _unused(job: Job) -> dict[str, str]:
    """The fields that are set for a strategy and have no effect, with the reasons."""
    strategy, asked = job.strategy, job.config
    settled = defaults(type(strategy)) | type(strategy).presets.get(asked.preset or "", {})
    changed = {name for name in asked.written if asked.strategy_fields[name] != settled.get(name)}
    if strategy.learning_rate != strategy.lr:  # not the rate that was asked for, although it is the default's
        changed |= asked.written & {"lr"}
    found = useless(asked, job.benchmark.info) | _unused_rates(job, changed)
    return {name: why for name, why in found.items() if name in changed}


def _uses(other: RunConfig, name: str, info: StreamInfo, prepare: Callable[[RunConfig], Job]) -> bool:
    """Whether another strategy uses a field that is set for it."""
    return name not in useless(other, info) and not (name in RATES and _unused_rates(prepare(other), {name}))


def useless(asked: RunConfig, info: StreamInfo) -> dict[str, str]:
    """The fields that have no effect on a strategy with its parts, with the reasons; without RATES."""
    strategy = asked.make_strategy()
    found: dict[str, str] = strategy.unused(info)
    if any(getattr(part, "adds_to_loss", False) for part in (*strategy.parts(), *asked.make_parts())):
        found.pop("mask", None)  # the term may be over its classes
    return found


def _unused_rates(job: Job, changed: set[str]) -> dict[str, str]:
    """Those of `changed` that are factors of learning rates, if no weights that they are for learn."""
    strategy = job.config.make_strategy()
    own = type(strategy)
    usual = own.configure_optimizer is Strategy.configure_optimizer
    usual = usual and own.parameter_groups is Strategy.parameter_groups and strategy.has_gradients
    asked = {name for name in RATES if name in changed and getattr(strategy, name) != 1}
    if not usual or not asked:
        return {}
    # a trial of what the run will do, with copies: `begin` may choose other weights in each experience
    info, device = job.benchmark.info, torch.device("cpu")
    used = set()
    with checked.blamed({f"strategy {plugins.short_name(job.config.strategy)!r}": strategy}, RequestError):
        learner, _ = build_learner(strategy, copy.deepcopy(job.backbone), info, job.config.seed, device, bf16=False)
        for experience in strategy.experiences(job.benchmark.train_stream):
            begin(strategy, learner, experience.info, job.config.seed, device)
            used |= {field for _, field in rate_fields(learner)} if strategy.epochs_for(experience.info) else set()
    return dict.fromkeys(asked - used, "no such weights are trained")
