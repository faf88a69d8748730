"""Processes that work together, for tests: what they do must be importable without pytest."""

import os
import pickle
import tempfile
import traceback

import torch

from clsim import parallel
from clsim.engines import local
from clsim.events import Part, State
from clsim.learner import learner_state
from clsim.runner import Job


def together(work, *given, size=2):
    """`work(world, *given)` in each of `size` processes; `work` is a function of a module."""
    context, found = local.server(), []
    with tempfile.TemporaryDirectory() as folder:
        members = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, size, f"file://{folder}/meet", dict(os.environ), work, given)
            member = context.Process(target=_serve, args=arguments)
            with local.without_main():
                member.start()
            theirs.close()
            members.append((member, ours))
        for _, ours in members:
            found.append(pickle.loads(ours.recv_bytes()))
        for member, _ in members:
            member.join()
    for each in found:
        if isinstance(each, str):
            raise AssertionError(each)
    return found


def _serve(driver, rank, size, place, environment, work, given):
    os.environ |= environment
    torch.set_num_threads(1)
    try:
        with parallel.joined(rank, size, place) as world:
            answer = work(world, *given)
    except BaseException:
        answer = traceback.format_exc()
    driver.send_bytes(pickle.dumps(answer))  # `send` would share the tensors' memory, which ends with the process


class Losses(Part):
    """The loss of every step."""

    def __init__(self):
        self.all = []

    def after_update(self, s):
        self.all.append(float(s.loss.detach()))


def ended(config):
    """A run without files: its counts, and by name, as tensors, losses, weights and the memories of its parts."""
    torch.manual_seed(0)
    job, losses = Job.prepare(config), Losses()
    learner, tower = job.learner()
    parts = [*job.strategy.parts(), *job.parts]
    loop = job.loop(State(learner, job.benchmark.info, config.seed), tower, [*parts, losses])
    loop.run()
    kept = {f"{i} {type(part).__name__}": part.state() for i, part in enumerate(parts)}
    values = {"losses": torch.tensor(losses.all), **learner_state(learner), **dict(_tensors(kept, "part"))}
    return loop.state.correct, {name: value.detach().clone() for name, value in values.items()}


def _tensors(tree, name):
    """Every tensor and number of a tree, by its place."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _tensors(value, f"{name} {key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _tensors(value, f"{name} {i}")
    elif tree is not None:
        yield name, torch.as_tensor(tree)


def all_ended(world, configs):
    """`ended` for each configuration."""
    return [ended(config) for config in configs]
