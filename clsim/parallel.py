"""One run on several processes, one for each GPU: each computes its share of every batch, and all end up equal.

The processes do the same steps with the same random numbers. Only the learner's forward and backward passes, in
training steps, and its predictions, in evaluation, are divided. A forward pass takes the process's share of the images
and then collects the outputs of all, so every process has the outputs of the whole batch: losses, votes and memories
are computed as in one process. The gradient of a collected output goes back to the process that computed it, summed
over all processes. So with N processes the gradient of a weight is N times the process's share of what comes through
the outputs, plus once what the loss takes from the weight directly (a penalty), which is the same everywhere. The mean
over the processes is the gradient of one process; only the order of additions differs.
"""

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from clsim.errors import PeerLost, RequestError, RunFailed

LONG = datetime.timedelta(days=7)  # the longest wait for another process, which may be reading data or drawing pictures

O = TypeVar("O")  # noqa: E741  # an Outputs
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The images of a batch that one process computes: `each` neighbours, from `each` times its rank.

    All processes compute equally many. Where none is left, the batch's last image is computed once more, and dropped.
    """

    count: int  # images of the whole batch
    each: int
    rank: int

    @property
    def places(self) -> NDArray[np.int64]:
        """(each,) places in the batch."""
        return np.arange(self.rank * self.each, (self.rank + 1) * self.each).clip(max=self.count - 1)

    def of(self, column: Any) -> Any:
        """(count, ...) tensor or array of the batch -> (each, ...). The host does not wait for a tensor."""
        if not isinstance(column, Tensor):
            return column[self.places]
        own = column[self.rank * self.each : (self.rank + 1) * self.each]
        missing = self.each - len(own)
        return own if not missing else torch.cat([own, column[-1:].expand(missing, *column.shape[1:])])


class World:
    """The processes of a run. Here it is a single one: there is nothing to divide and nobody to ask."""

    rank = 0
    size = 1
    active: Share | None = None  # the share that the learner is computing; None: a whole batch

    def share(self, count: int, unlike: Share | None = None) -> Share | None:
        """This process's share of a batch of `count` images; None: all of it.

        `unlike`: the share of another batch that the learner gets together with it. If the batches differ in size, the
        shares do, too, so that the length of an output says which batch it belongs to.
        """
        return None

    def prepare(self, owner: str, learner: nn.Module) -> None:
        """Make a learner fit for shares, again after it has grown. Raises RequestError, with `owner`, if it is not."""

    @contextmanager
    def computing(self, learner: nn.Module, share: Share | None) -> Iterator[None]:
        """While the learner computes a share of a batch (None: a whole batch). Raises RunFailed for random draws."""
        yield

    def whole(self, outputs: O, shares: Sequence[Share]) -> O:
        """A dataclass with tensors for this process's shares -> the same with tensors for the whole batches."""
        return outputs

    def collected(self, own: Tensor, share: Share) -> Tensor:
        """(each, ...) values of this process's share -> (count, ...) of the whole batch, with gradients."""
        return own

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set each gradient to the mean over the processes."""

    def portion(self, rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """This process's part of (n,) rows, in whole batches of `size`; it may be empty."""
        return rows

    def everyone(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def told(self, value: T) -> T:
        """The first process's value."""
        return value

    def wait(self) -> None:
        """Wait until every process has come so far."""

    def require_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunFailed if a tensor differs between the processes."""


class Several(World):
    """Several processes, each with its own copy of everything. They call the same methods in the same order."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._hooked: WeakSet[nn.Module] = WeakSet()
        self._watched: WeakSet[nn.Module] = WeakSet()  # learners seen in training to draw no random numbers

    def share(self, count: int, unlike: Share | None = None) -> Share:
        each = -(-count // self.size)
        if unlike is not None and unlike.count != count and unlike.each == each:
            each += 1
        return Share(count, each, self.rank)

    def prepare(self, owner: str, learner: nn.Module) -> None:
        for name, module in learner.train().named_modules():
            if module.training and _drops(module):
                raise RequestError(f"{owner}: its {name} has drop-out, which several processes cannot draw as one does")
            if isinstance(module, _BatchNorm) and module not in self._hooked:
                module.register_forward_pre_hook(self._before_norm)
                module.register_forward_hook(self._after_norm)
                self._hooked.add(module)

    def _before_norm(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Batch normalisation in training sees the whole batch."""
        return (self.collected(given[0], self.active),) if self.active is not None and module.training else None

    def _after_norm(self, module: nn.Module, given: Any, found: Tensor) -> Tensor | None:
        return self.active.of(found) if self.active is not None and module.training else None

    @contextmanager
    def computing(self, learner: nn.Module, share: Share | None) -> Iterator[None]:
        first = share is not None and learner.training and learner not in self._watched
        before = _random_states() if first else []
        self.active = share
        try:
            yield
        finally:
            self.active = None
        if first:
            if not all(map(torch.equal, before, _random_states())):
                name = type(learner).__name__
                raise RunFailed(f"{name}.forward draws random numbers, which several processes cannot draw as one does")
            self._watched.add(learner)

    def whole(self, outputs: O, shares: Sequence[Share]) -> O:
        of, found = {share.each: share for share in shares}, dict[int, Tensor]()
        changed = {}
        for field in fields(outputs):  # type: ignore[arg-type]
            value = getattr(outputs, field.name)
            if not shares or not isinstance(value, Tensor):
                continue
            share = of.get(len(value)) if value.ndim else None
            if share is None:
                name, shape = f"{type(outputs).__name__}.{field.name}", tuple(value.shape)
                raise RunFailed(f"{name} must have one row for each image on several processes; its shape is {shape}")
            if id(value) not in found:
                found[id(value)] = self.collected(value, share)
            changed[field.name] = found[id(value)]
        return replace(outputs, **changed)  # type: ignore[type-var]

    def collected(self, own: Tensor, share: Share) -> Tensor:
        found: Tensor = _Collected.apply(own, share, self.size)
        return found

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        every = [p.grad for p in parameters if p.grad is not None]
        for kind in dict.fromkeys(gradient.dtype for gradient in every):
            gradients = [gradient for gradient in every if gradient.dtype == kind]
            together = torch.cat([gradient.reshape(-1) for gradient in gradients])
            _summed(together).div_(self.size)
            parts = together.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def portion(self, rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        # whole batches, as in one process: their shape decides which kernels run, and some methods vote in them
        each = -(-len(rows) // (size * self.size)) * size
        return rows[self.rank * each : (self.rank + 1) * each]

    def everyone(self, value: T) -> list[T]:
        every: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(every, value)
        return every

    def told(self, value: T) -> T:
        said: list[Any] = [value if not self.rank else None]
        with _connected():
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return value if not self.rank else said[0]

    def wait(self) -> None:
        self.everyone(None)

    def require_same(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        sums = [tensor.detach().double().nan_to_num(posinf=1.0).sum() for tensor in tensors.values()]
        least, most = torch.stack(sums), torch.stack(sums)
        with _connected():
            dist.all_reduce(least, dist.ReduceOp.MIN)
            dist.all_reduce(most, dist.ReduceOp.MAX)
        for name, same in zip(tensors, (least == most).tolist(), strict=True):
            if not same:
                raise RunFailed(f"{name} is not the same in all {self.size} processes; the last checkpoint is kept")


class _Collected(torch.autograd.Function):
    """The rows of all processes; backward, the sum over the processes of the gradient of this process's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: Share, size: int) -> Tensor:
        ctx.share, ctx.size = share, size
        whole = own.new_empty(size * share.each, *own.shape[1:])
        with _connected():
            dist.all_gather(list(whole.split(share.each)), own.contiguous())
        return whole[: share.count]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        share: Share = ctx.share
        whole = gradient.new_zeros(ctx.size * share.each, *gradient.shape[1:])
        whole[: share.count] = gradient
        _summed(whole)
        return whole[share.rank * share.each : (share.rank + 1) * share.each], None, None


def _summed(tensor: Tensor) -> Tensor:
    """The tensor, set to its sum over the processes."""
    with _connected():
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of the run has ended") from error


def _random_states() -> list[Tensor]:
    """The states of the global generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, _DropoutNd) and module.p > 0


# the processes that this one belongs to

_world: World = World()


def current() -> World:
    """The processes that work on this process's runs."""
    return _world


@contextmanager
def joined(rank: int, size: int, place: str) -> Iterator[World]:
    """Work with `size` processes that meet at `place` (a URL for torch), the first of which has the rank 0.

    The process uses the GPU with the number of its rank on this machine, if there is one.
    """
    global _world
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(rank % gpus)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    with _connected():
        dist.init_process_group(backend, init_method=place, rank=rank, world_size=size, timeout=LONG)
    _world = Several(rank, size)
    try:
        yield _world
    finally:
        _world = World()
        dist.destroy_process_group()


def require_device(device: str) -> None:
    """Raises RequestError if the processes of a run cannot each have a device of this kind."""
    if current().size == 1 or device == "cpu":
        return
    if device != "cuda":
        raise RequestError(f"--device {device}: several processes take --device cuda, a GPU for each, or --device cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", current().size))  # torchrun may start others on other machines
    if here > torch.cuda.device_count():
        raise RequestError(f"{here} processes need {here} GPUs; torch finds {torch.cuda.device_count()}")


# for learners that look across their batch


def across(values: Tensor) -> Tensor:
    """(b, ...) values of the images in a learner's batch -> (B, ...) of the whole batch, of which it has a share.

    A learner whose result for an image depends on the other images of the batch must use this, and `own`.
    """
    share = _world.active
    return values if share is None else _world.collected(values, share)


def own(values: Tensor) -> Tensor:
    """(B, ...) values for the whole batch -> (b, ...) of the images in the learner's batch."""
    share = _world.active
    return values if share is None else share.of(values)  # type: ignore[no-any-return]
