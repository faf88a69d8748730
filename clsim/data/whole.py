"""Whole images of several sizes, decoded, one after another in one array."""

import numpy as np
from numpy.typing import NDArray

from clsim.data.pixels import centre_square


class WholeImages:
    """N images whose shorter sides are equal. With an array mapped from a file, memory holds only sizes and places."""

    def __init__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64], side: int) -> None:
        """`images`: the bytes of all images; `sizes`: (N,2) heights and widths; `side`: the shorter of the two."""
        self.sizes = sizes
        self.shape = (len(self.sizes), 3, side, side)  # of the squares in their centres
        self._starts = np.concatenate([[0], np.cumsum(3 * self.sizes.prod(axis=1))])
        self._bytes = images

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) rows -> (n, 3, side, side): the square in the centre of each image."""
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(np.asarray(rows).tolist()):
            found[place] = centre_square(self._one(row))
        return found

    def whole(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """(n,) rows -> n images (3, h, w)."""
        return [self._one(row).copy() for row in np.asarray(rows).tolist()]

    def _one(self, row: int) -> NDArray[np.uint8]:
        return self._bytes[self._starts[row] : self._starts[row + 1]].reshape(3, *self.sizes[row])
