"""Work on many images in threads: results in order, few of them in memory, the first error by name."""

import pytest

from clsim.data import encoded
from clsim.data.encoded import CHUNK, GROUP, for_each
from clsim.errors import RequestError

NAMES = [f"image {i}" for i in range(5 * CHUNK)]


@pytest.mark.parametrize("count", [0, 1, GROUP - 1, GROUP, GROUP + 1, 2 * CHUNK + 5])
def test_results_come_in_the_order_of_the_rows(count):
    rows = list(range(count))[::-1]
    assert list(for_each(rows, lambda row: 2 * row, NAMES, None)) == [2 * row for row in rows]


def test_few_results_wait_in_memory():
    begun = []
    results = for_each(range(5 * CHUNK), lambda row: begun.append(row), NAMES, None)
    next(results)
    assert len(begun) <= CHUNK
    assert sum(1 for _ in results) == 5 * CHUNK - 1 and len(begun) == 5 * CHUNK


def broken(row):
    if row % 100 == 70:
        raise ValueError(f"broken {row}")
    return row


def test_the_first_bad_image_is_named():
    with pytest.raises(RequestError, match=r"cannot decode image image 70 \(broken 70\)"):
        list(for_each(range(1000), broken, NAMES, None))


def test_bad_images_are_left_out_with_their_reasons():
    bad = {}
    found = list(for_each(range(200), broken, NAMES, bad))
    assert [row for row, result in enumerate(found) if result is None] == [70, 170]
    assert bad == {70: "broken 70", 170: "broken 170"}


def test_more_threads_than_images_are_fine(monkeypatch):
    monkeypatch.setattr(encoded.os, "cpu_count", lambda: 16)
    assert list(for_each([3, 1], lambda row: row, NAMES, None)) == [3, 1]
