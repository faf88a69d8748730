"""The way of images to a GPU without anyone waiting: they are read ahead in a thread, and sent from pinned memory."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = NDArray[np.uint8] | list[NDArray[np.uint8]]  # (n,3,H,W), or n images (3,h,w)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device. To a GPU it goes from pinned memory: the host does not wait for the copy."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Ahead:
    """Reads the next rows in a thread while this batch is computed. It draws no random numbers: the order of draws is
    that of a run that reads nothing ahead."""

    def __init__(self, read: Callable[[NDArray[np.int64]], Images]) -> None:
        """`read`: (n,) rows -> their images."""
        self.read = read
        self._next: tuple[NDArray[np.int64], Future[Images]] | None = None

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "clsim-ahead")

    def start(self, rows: NDArray[np.int64]) -> None:
        """Begin to read these rows. Only one batch is kept: it takes the place of one that nobody took."""
        self._next = rows, self._thread.submit(self.read, rows)

    def take(self, rows: NDArray[np.int64]) -> Images:
        """(n,) rows -> their images, as from `read`. If they begin with the rows read ahead, only the rest is read.

        Raises what `read` raises, here and not in the thread.
        """
        if self._next is None or not np.array_equal(rows[: len(self._next[0])], self._next[0]):
            return self.read(rows)
        (known, reading), self._next = self._next, None
        found, rest = reading.result(), rows[len(known) :]
        if not len(rest):
            return found
        more = self.read(rest)
        if isinstance(found, np.ndarray) and isinstance(more, np.ndarray):
            return np.concatenate([found, more])
        return [*found, *more]
