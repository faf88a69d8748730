"""Images read ahead: the same as those read when they are needed, and no error is lost."""

import threading

import numpy as np
import pytest
import torch

from clsim.data.ahead import Ahead, sent
from clsim.errors import RunFailed


class Reading:
    """Images whose pixels are their rows' numbers; it notes what was read, and whether in another thread."""

    def __init__(self, as_list=False):
        self.as_list, self.calls = as_list, []

    def __call__(self, rows):
        self.calls.append((rows.tolist(), threading.current_thread() is not threading.main_thread()))
        if 99 in rows:
            raise RunFailed("cannot decode image 99")
        found = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 3, 2, 2))
        return list(found) if self.as_list else found


@pytest.mark.parametrize("as_list", [False, True])
def test_rows_read_ahead_are_not_read_again_and_replayed_ones_follow(as_list):
    read = Reading(as_list)
    ahead = Ahead(read)
    ahead.start(np.array([4, 2]))
    other = ahead.take(np.array([7]))  # e.g. of the target: what was read ahead stays
    found = ahead.take(np.array([4, 2, 9]))
    assert [image[0, 0, 0] for image in found] == [4, 2, 9] and [image[0, 0, 0] for image in other] == [7]
    assert isinstance(found, list) == as_list
    assert sorted(read.calls) == [([4, 2], True), ([7], False), ([9], False)]
    assert [image[0, 0, 0] for image in ahead.take(np.array([4, 2]))] == [4, 2], "taken once, then read again"


def test_an_error_is_raised_where_the_rows_are_taken():
    ahead = Ahead(Reading())
    ahead.start(np.array([1, 99]))
    assert len(ahead.take(np.array([5]))) == 1
    with pytest.raises(RunFailed, match="image 99"):
        ahead.take(np.array([1, 99]))


class Sent:
    """Stands in for a tensor of the CPU; it notes how it is sent."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def pin_memory(self):
        self.calls.append("pinned")
        return self

    def to(self, device, **how):
        self.calls.append((device.type, how))
        return self


def test_only_what_goes_to_a_gpu_is_pinned():
    assert sent(Sent(), torch.device("cpu")).calls == [("cpu", {})]
    assert sent(Sent(), torch.device("cuda")).calls == ["pinned", ("cuda", {"non_blocking": True})]
