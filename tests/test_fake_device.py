"""No strategy waits for the device in a training step, and none mixes devices: on a device that is only pretended.

PyTorch's FakeTensorMode computes shapes and devices, and no values. So it raises where tensors are on two devices, and
where Python asks for a value, as a GPU would have to finish its work first. It can pretend "cuda" without a GPU, except
in autograd's backward pass (torch asks the driver for the device, and there is none); there "cpu" takes its place,
whose pretended tensors have no values either.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from clsim import plugins
from clsim.data.transforms import Augmentation
from clsim.events import State, Step
from clsim.learner import begin
from clsim.loop import Loop
from clsim.strategies.linear import Linear
from clsim.tools import Tools

pytestmark = pytest.mark.usefixtures("without_pictures")


def has_gradients(name):
    return plugins.load("strategies", name)().has_gradients


TRAINED = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name in plugins.names("strategies")
    if has_gradients(name)
]
# of three experiences: steps in the first only, or also on the images of earlier ones
STEPS = {"aper": 3, "ranpac": 3, "gdumb": 18, "icarl": 18}
OF_TENSORS = {"labels", "images", "features", "domains"}


class NoTransfer(TorchDispatchMode):
    """Raises where a tensor goes from one device to another: the host waits for each of these."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {each.device.type for each in tensors((args, kwargs)) if each.numel() > 0}
        returned = {each.device.type for each in tensors(found)}
        # a number of Python's, as a tensor without dimensions, may join any others
        several = {each.device.type for each in tensors((args, kwargs)) if each.dim() > 0}
        if (given and returned - given) or len(several) > 1:
            raise RuntimeError(f"{function} takes tensors from {given} to {returned}: the host waits")
        return found


def tensors(tree):
    """Every tensor of a tree."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [each for item in tree for each in tensors(item)] if isinstance(tree, list | tuple) else []


def first_rows(batch, size):
    """The first rows of a batch, and of the target's."""
    columns = {name: getattr(batch, name) for name in OF_TENSORS}
    cut = {name: None if column is None else column[:size] for name, column in columns.items()}
    return dataclasses.replace(batch, **cut, target=None if batch.target is None else first_rows(batch.target, size))


class Pretended:
    """A learner and a batch on a pretended device, as they are in the first step of an experience."""

    def __init__(self, job, device):
        learner, tower = job.learner()
        experience = job.benchmark.train_stream[0]
        self.loader = job.loader(experience.table, tower, job.strategy.feature_views())
        begin(job.strategy, learner, experience.info, seed=0, device=torch.device("cpu"))
        self.state = State(learner, job.benchmark.info, 0, seen=experience.classes, mask=job.strategy.mask)
        self.state.current, self.state.exp_steps = experience, 4
        self.strategy, self.device = job.strategy, device
        self.how = Augmentation(1.0, False)
        self.rows = experience.rows[:4]
        self.batch = self.loader.train(self.rows, self.how, torch.Generator().manual_seed(0))
        self.batch = dataclasses.replace(self.batch, task=experience.task_label)
        if experience.unlabelled is not None:
            target = self.loader.target(experience.unlabelled[:4], self.how, torch.Generator().manual_seed(0))
            self.batch = dataclasses.replace(self.batch, target=target)

    def move(self):
        """Everything to the device; called under FakeTensorMode."""
        moved = {}

        def pretend(tensor):
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor, torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            return moved[id(tensor)][1]

        for module in self.state.learner.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    made = nn.Parameter(pretend(parameter), requires_grad=parameter.requires_grad)
                    module._parameters[name] = moved.setdefault(("as a parameter", id(parameter)), made)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else pretend(buffer)
        self.batch = self._pretended(self.batch, pretend)
        self.loader.device = torch.device(self.device)
        self.state.tools = Tools(self.state.learner.train(), self.loader, self.how, bf16=False)

    def _pretended(self, batch, pretend):
        columns = {name: getattr(batch, name) for name in OF_TENSORS}
        made = {name: None if column is None else pretend(column) for name, column in columns.items()}
        target = None if batch.target is None else self._pretended(batch.target, pretend)
        return dataclasses.replace(batch, **made, target=target)

    def step(self, size=4):
        """An update up to its loss on the first `size` rows, with the strategy's own handlers."""
        step = Step(self.state, self.rows[:size], first_rows(self.batch, size))
        self._raise("before_forward", step)
        step.outputs = self.state.outputs(step.batch)
        self._raise("after_forward", step)
        step.loss = self.strategy.loss(step)
        self._raise("before_backward", step)
        return step

    def finish(self, step):
        """The rest of the update."""
        step.loss.backward()
        self._raise("after_backward", step)
        nn.utils.clip_grad_norm_((p for p in self.state.learner.parameters() if p.requires_grad), 1.0)
        self._raise("before_update", step)
        self.state.optimizer.step()
        self._raise("after_update", step)
        self._raise("after_training_iteration", step)

    def _raise(self, event, step):
        getattr(self.strategy, event, lambda step: None)(step)


# torch turns autocast off where there is no GPU, and says so; an LSTM compares the addresses of its weights
WARNINGS = ("ignore:User provided device_type of 'cuda'", "ignore:Accessing the data pointer of FakeTensor")


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("protocol", ["class", "task", "pair"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_stays_on_its_device_and_asks_for_no_value(name, protocol, tmp_path, prepare):
    pretended = Pretended(prepare(name, tmp_path, {"protocol": protocol}), "cuda")
    # cuDNN's LSTM asks the driver
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(allow_non_fake_inputs=False):
        pretended.move()
        pretended.step()  # sets of classes are made once, and kept
        with NoTransfer():
            step = pretended.step()
            smaller = pretended.step(3)  # an epoch's last batch has the rows that are left: no wait for them either
    assert step.loss.device.type == "cuda" and step.loss.dim() == 0
    assert step.logits.shape == (4, 6) and step.logits.dtype == torch.float32
    assert smaller.logits.shape == (3, 6)


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("protocol", ["class", "pair"])
@pytest.mark.parametrize("name", TRAINED)
def test_an_update_asks_for_no_value(name, protocol, tmp_path, prepare):
    pretended = Pretended(prepare(name, tmp_path, {"protocol": protocol}), "cpu")
    with FakeTensorMode(allow_non_fake_inputs=False):
        pretended.move()
        pretended.state.made_optimizer = pretended.strategy.configure_optimizer(pretended.state.learner)
        pretended.finish(pretended.step())
    asked = [p for p in pretended.state.learner.parameters() if p.requires_grad]
    assert any(p.grad is not None for p in asked)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_one_kernel_updates_all_parameters_on_a_gpu(optimizer):
    strategy = Linear(optimizer=optimizer)
    with FakeTensorMode():
        made = [strategy.configure_optimizer(nn.Linear(3, 2, device=device)) for device in ("cuda", "cpu")]
    assert [each.param_groups[0]["fused"] for each in made] == [True, None]


def test_the_pretended_device_notices_what_it_is_for():
    with FakeTensorMode(allow_non_fake_inputs=False), NoTransfer():
        ours = torch.empty(3, device="cuda")
        assert (ours * 2 + 1).device.type == "cuda"
        for wait in (
            lambda: ours.sum().item(),
            lambda: ours.tolist(),
            lambda: bool(ours.sum() > 0),
            lambda: (ours > 0).nonzero(),
            lambda: ours[ours > 0],
            lambda: ours.cpu(),
            lambda: ours + torch.zeros(3),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: ours[[0, 2]],
            lambda: ours[torch.tensor([0, 2])],
        ):
            with pytest.raises(Exception, match=r"wait|device|aten"):
                wait()


# on a real device, where the calls that wait are counted


@pytest.mark.parametrize("name", TRAINED)
def test_no_value_is_read_between_the_first_and_the_last_event_of_a_step(name, counted_run, tmp_path):
    assert counted_run(name, tmp_path, epochs=1) == []


@pytest.mark.parametrize("part", ["er:4", "der:0.1:0.5:6", "ewc:10", "lwf:0.5"])
def test_parts_read_no_value_either(part, counted_run, tmp_path):
    assert counted_run("linear", tmp_path, epochs=1, **{"with": [part]}) == []


def test_a_value_that_is_read_is_counted(counted_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Linear, "loss", lambda self, s: s.logits.sum() * float(s.logits.sum() > 0))
    assert counted_run("linear", tmp_path, epochs=1) == ["__float__"] * 9


@pytest.fixture
def counted_run(finished, monkeypatch):
    """Finishes a run on Toy; the calls, in its steps, of methods that wait for a device."""
    inside, paused, calls = [], [], []

    def counted(method):
        def call(tensor, *args, **kwargs):
            if inside:
                calls.append(method.__name__)
            return method(tensor, *args, **kwargs)

        return call

    def step(loop, *args):
        inside.append(True)
        whole_step(loop, *args)
        inside.clear()

    def batch(tools, *args):
        """Rows and random numbers are the host's, and so are images until they are on the device."""
        pause()
        made = whole_batch(tools, *args)
        go_on()
        return made

    def pause(*args):
        paused.extend(inside)
        inside.clear()

    def go_on(*args):
        inside.extend(paused)
        paused.clear()

    whole_step, whole_batch = Loop._step, Tools.augmented
    monkeypatch.setattr(Loop, "_step", step)
    monkeypatch.setattr(Tools, "augmented", batch)
    for method in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, method, counted(getattr(torch.Tensor, method)))

    def run(name, *args, **given):
        run = finished(name, *args, **given)
        assert len(run.events["step"]["loss"]) == STEPS.get(name, 9) and np.isfinite(run.events["step"]["loss"]).all()
        return calls

    # an optimizer counts its steps on the host
    hooks = register_optimizer_step_pre_hook(pause), register_optimizer_step_post_hook(go_on)
    yield run
    for hook in hooks:
        hook.remove()
