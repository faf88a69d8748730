"""What benchmarks of training steps share: a run's own loop, without a run directory."""

from pathlib import Path

from torch import Tensor

from clsim import config
from clsim.backbones.load import Backbone
from clsim.data.batches import Batch
from clsim.data.streams import Benchmark
from clsim.events import State, Step
from clsim.hardware import settled
from clsim.loop import Loop
from clsim.runner import Job
from clsim.strategy import Strategy


def new(
    strategy: Strategy, backbone: Backbone, benchmark: Benchmark, precision: str = "auto", device: str = "cpu"
) -> Loop:
    """The loop of a run at its start; nothing is recorded or saved. "auto" is bfloat16 where the device has it."""
    device, precision = settled(device, precision)
    (wanted,) = config.plan({"device": device, "precision": precision}, {})
    job = Job(wanted, "", Path(), strategy, [], benchmark, backbone, "")
    learner, bank_tower = job.learner()
    return job.loop(State(learner, benchmark.info, wanted.seed), bank_tower, strategy.parts())


def begun(
    strategy: Strategy, backbone: Backbone, benchmark: Benchmark, precision: str = "auto", device: str = "cpu"
) -> Loop:
    """The same that has begun its first experience and has taken no step: learner and optimizer are made."""
    loop = new(strategy, backbone, benchmark, precision, device)
    experience = strategy.experiences(benchmark.train_stream)[0]
    loop.state.current, loop.state.seen = experience, experience.classes
    loop._begin(experience, strategy.epochs_for(experience.info))
    loop.state.learner.train()
    return loop


def update(loop: Loop, batch: Batch) -> Tensor:
    """Forward, backward and update on a batch that is there already; the loss."""
    s = loop.state
    step = Step(s, batch.rows if batch.rows is not None else s.experience.rows[:0], batch)
    step.outputs = s.outputs(batch)
    loss = loop.strategy.loss(step)
    s.optimizer.zero_grad()
    loss.backward()
    s.optimizer.step()
    return loss.detach()
