"""Checks of what plug-ins return and raise: an error names the plug-in, its method, and what was expected."""

import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clsim.errors import RequestError, RunFailed
from clsim.outputs import Outputs

INPUTS = {"images", "features"}
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
CORE = ("clsim.strategy", "clsim.events", "clsim.data.streams")  # they call methods that a plug-in must have


def require_build(strategy: Any, root: type[Any]) -> None:
    """Raises RequestError if a strategy has no `build`. `root`: the class Strategy."""
    if type(strategy).build is root.build:
        name = type(strategy).__name__
        raise RequestError(f"{name} has no method build(self, backbone, info), which must return the learner")


def module(strategy: Any, built: Any) -> nn.Module:
    """The result of `build`. Raises RequestError if it is no module."""
    if not isinstance(built, nn.Module):
        what = "a torch.nn.Module that maps a Batch to logits"
        raise RequestError(f"{type(strategy).__name__}.build must return {what}, not {_kind(built)}")
    return built


def inputs(strategy: Any) -> set[str]:
    """The result of `reads`. Raises RequestError unless it has some of "images" and "features", and nothing else."""
    found = strategy.reads()
    if isinstance(found, set | frozenset) and found and found <= INPUTS:
        return set(found)
    shown = f"{{{', '.join(sorted(map(repr, found)))}}}" if isinstance(found, set | frozenset) else repr(found)
    wanted = '{"images"}, {"features"} or both'
    raise RequestError(f"{type(strategy).__name__}.reads must return {wanted}, not {shown}")


def loss(strategy: Any, found: Any) -> Tensor:
    """The result of `loss`. Raises RunFailed if it is no scalar that has a gradient; its value is not read."""
    right = isinstance(found, Tensor) and found.numel() == 1 and found.is_floating_point()
    if not right:
        raise RunFailed(f"{type(strategy).__name__}.loss must return a scalar tensor, not {_kind(found)}")
    if not found.requires_grad:
        raise RunFailed(f"{type(strategy).__name__}.loss returned a loss that depends on no trained parameter")
    return found  # type: ignore[no-any-return]


def not_finite(strategy: Any, value: float, step: int) -> RunFailed:
    """The error for a loss that is not finite. Before the first update no learning rate can be the reason."""
    what = f"{type(strategy).__name__}: the loss is {value} at step {step}"
    if step == 0:
        return RunFailed(f"{what}, before any update: check `loss` and the learner's outputs")
    return RunFailed(f"{what}; the last checkpoint is kept. Try a smaller lr")


def watch_outputs(learner: nn.Module, num_classes: int) -> None:
    """Check the learner's first result in training and its first in evaluation; later ones cost nothing."""
    pending = {True, False}

    def hook(module: nn.Module, arguments: tuple[Any, ...], returned: Any) -> None:
        if module.training in pending:
            require_outputs(f"{type(learner).__name__}.forward", returned, len(arguments[0]), num_classes)
            pending.discard(module.training)
        if not pending:
            handle.remove()

    handle = learner.register_forward_hook(hook)


def require_outputs(method: str, returned: Any, count: int, num_classes: int) -> None:
    """Raises RunFailed unless a learner's result has (count, num_classes) floating-point logits. No value is read."""
    logits = returned.logits if isinstance(returned, Outputs) else returned
    wanted = f"({count}, {num_classes}) floating-point logits, one column for each class, or Outputs with them"
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape != (count, num_classes):
        raise RunFailed(f"{method} must return {wanted}, not {_kind(logits)}")
    task = returned.task if isinstance(returned, Outputs) else None
    if task is not None and task.shape != (count,):
        raise RunFailed(f"{method} must return an Outputs.task of shape ({count},), not {_kind(task)}")


def _kind(value: Any) -> str:
    """A value's type, and its shape if it is a tensor."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


# errors that are raised inside of plug-ins


@contextmanager
def blamed(named: Mapping[str, Any], raised: type[Exception]) -> Iterator[None]:
    """An error from inside a plug-in becomes `raised`, one line with the plug-in, the method and the line of its file.

    `named`: text -> plug-in. Errors that passed through none of their files are left as they are.
    """
    try:
        yield
    except (RequestError, RunFailed, OSError):
        raise
    except (Exception, SystemExit) as error:
        files = {file: text for text, plugin in named.items() for file in _files(plugin)}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        if frames:
            last = frames[-1]
            place = f"{files[last.filename]}: {last.name} failed ({last.filename}, line {last.lineno})"
            raise raised(f"{place}: {_missing(error) or reason}") from error
        if lacking := _missing(error):
            raise raised(f"{', '.join(named)}: {lacking}") from error
        raise


def _missing(error: BaseException) -> str:
    """A sentence if the error is that of a method that a base class leaves to the plug-in."""
    if not isinstance(error, NotImplementedError) or str(error):
        return ""
    return f"the method {traceback.extract_tb(error.__traceback__)[-1].name} is missing"


def _files(plugin: Any) -> list[str]:
    """The files of a plug-in's class and its base classes, without the core's."""
    modules = {cls.__module__ for cls in type(plugin).__mro__} - {"builtins", *CORE}
    found = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return [file for file in found if file is not None]


# memory


class MemoryLimit(TorchFunctionMode):
    """While it is active, tensors that would not fit into the machine's memory raise RequestError before they are made.

    Without it Linux may end the whole process.
    """

    def __init__(self, name: str, limit: int | None = None) -> None:
        """`limit` in bytes; None: the machine's memory."""
        super().__init__()
        self.name, self.left = name, limit if limit is not None else _machine_memory()
        self.limit = self.left

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in MAKERS and str(given.get("device")) != "meta":
            shape = _shape(args, given)
            self.left -= (given.get("dtype") or torch.float32).itemsize * math.prod(shape)
            if self.left < 0:
                total = self.limit - self.left
                raise RequestError(
                    f"{self.name} would take {_bytes(total)} of memory for its parameters (one has the shape {shape}), "
                    f"and this machine has {_bytes(self.limit)}"
                )
        return func(*args, **(kwargs or {}))


def _shape(args: Any, kwargs: Any) -> tuple[int, ...]:
    """The shape that a function such as torch.empty is asked for."""
    size = kwargs.get("size", args)
    if len(size) and isinstance(size[0], tuple | list | torch.Size):
        size = size[0]
    return tuple(int(n) for n in size if isinstance(n, int))


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(count: float) -> str:
    """A number of bytes for readers: 3.8 TB."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"
