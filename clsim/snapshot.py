"""Snapshots: everything that the rest of a run depends on. They can be taken between any two steps."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from clsim.data.streams import ExperienceInfo, StreamInfo
from clsim.errors import RequestError
from clsim.events import Part
from clsim.hardware import peak_memory
from clsim.learner import learner_state, load_learner, replay
from clsim.loop import Cost, Loop

COPIED = ("trained", "epoch", "epoch_steps", "step", "correct", "total", "task_correct", "anytime", "has_baseline_row")


def take(loop: Loop, parts: Sequence[Part], offset: int, journal: str | None = None) -> dict[str, Any]:
    """A tree for `clsim.checkpoint`; `offset` is the length of the journal, and `journal` its digest."""
    s = loop.state
    # each experience makes its own optimizer, so between two experiences there is none to save
    kept = s.made_optimizer is not None and (loop.inside or not s.experience.boundary)
    return {
        "info": asdict(s.info),
        # not asdict, which copies every class of every experience each time
        "begun": [dict(vars(experience)) for experience in s.begun],
        "tests": [dict(vars(experience.info)) for experience in loop.benchmark.test_stream],
        "learner": learner_state(s.learner),
        "optimizer": s.optimizer.state_dict() if kept else None,
        "random": _random_state() if loop.inside else None,
        "parts": [part.state() for part in parts],
        "strategy": loop.strategy.state(),
        "seen": list(s.seen),
        "inside": loop.inside,
        "confusion": None if s.confusion is None else torch.from_numpy(s.confusion),
        "cost": asdict(loop.cost),
        "peak_memory": peak_memory(),
        "offset": offset,
        "journal": journal,
        **{name: getattr(s, name) for name in COPIED},
    }


def restore(loop: Loop, parts: Sequence[Part], saved: dict[str, Any]) -> None:
    """Restore the loop's state from `take`. First the learner is grown, then the weights are copied into it."""
    s, strategy = loop.state, loop.strategy
    s.begun = experiences(saved["begun"])
    replay(strategy, s.learner, s.begun, s.seed, loop.train_loader.device)
    load_learner(s.learner, saved["learner"])
    if saved["optimizer"] is not None:
        s.made_optimizer = strategy.configure_optimizer(s.learner)
        try:
            s.made_optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise RequestError(
                f"the saved optimizer does not fit the learner ({error}): parameters to train must be chosen in "
                "`begin`, not in `before_training_exp`, because resuming repeats `begin`. Use --fresh to start again"
            ) from error
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load(state)
    strategy.load(saved["strategy"])
    s.seen = tuple(saved["seen"])
    for name in COPIED:
        setattr(s, name, saved[name])
    learned = [e for e in strategy.experiences(loop.benchmark.train_stream) if e.index < s.trained]
    s.current = learned[-1] if learned else None  # for handlers of after_training, if nothing is left to learn
    s.confusion = None if saved["confusion"] is None else saved["confusion"].numpy()
    loop.inside = saved["inside"]
    loop.cost = Cost(**saved["cost"])
    if saved["random"] is not None:
        torch.set_rng_state(saved["random"]["cpu"])
        if torch.cuda.is_available() and saved["random"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])


def _random_state() -> dict[str, Any]:
    """The states of the global generators, which drop-out uses."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def experiences(saved: Sequence[dict[str, Any]]) -> tuple[ExperienceInfo, ...]:
    """ExperienceInfo of the experiences from a checkpoint."""
    return tuple(ExperienceInfo(**{**each, "classes": tuple(each["classes"])}) for each in saved)


def stream_info(saved: dict[str, Any]) -> StreamInfo:
    """StreamInfo from a checkpoint."""
    names = ("class_names", "domain_names")
    return StreamInfo(**{**saved, **{name: tuple(saved[name]) for name in names}})
