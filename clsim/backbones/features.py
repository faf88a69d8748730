"""FeatureBank: the cached features of a frozen tower, computed once for each image."""

import hashlib
from pathlib import Path
from time import perf_counter
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim import rng
from clsim.backbones.bank_files import FORM, BankFiles
from clsim.backbones.towers import ARITHMETIC, Tower
from clsim.data.ahead import sent
from clsim.data.batches import as_tensors, filled_up
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, augmented, evaluation
from clsim.hardware import memory_of

# Rows computed together on CPUs. It is fixed, because a feature's last bits depend on the shape of its batch.
BLOCK = 32
MOST = 1024  # rows computed together on a GPU
SHARE = 1 / 8  # of a GPU's memory, for the tokens of these rows


class View(NamedTuple):
    """One augmented image for each clean one; its crops are determined by these two fields."""

    number: int
    how: Augmentation


class FeatureBank:
    """Pooled features of a table's images from a frozen tower, in a file that all runs share. They are of the clean
    images, or of one augmented view of each.

    Rows are computed when they are first needed, in fixed blocks of neighbouring rows. So every process writes the same
    bits in every order: a bank that was interrupted, or filled by two processes at the same time, is equal to a bank
    filled at once. Processes that need the same rows at the same time share the work: each block is locked while it is
    computed. A block is complete when its flag is set, which is written after its data. Its checksum is compared when
    a process first reads it; a broken block is computed again.
    """

    spent: ClassVar[float] = 0.0  # seconds that this process has filled banks for

    def __init__(
        self, tower: Tower, table: ImageTable, device: torch.device, cache_dir: Path, view: View | None = None
    ) -> None:
        self.tower = tower
        self.table = table
        self.device = device
        self.view = view
        self.block = block_rows(tower, table, device)
        # another number of threads may add in another order: the last bits belong to it
        threads = f"/{torch.get_num_threads()} threads" if device.type == "cpu" else ""
        key = f"{FORM}/{ARITHMETIC}/{tower.fingerprint()}/{table.fingerprint}/{device.type}/{self.block}{threads}"
        if view is not None:
            key += f"/view {view.number}, {view.how}"
        self.folder = cache_dir / "features" / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        stored = "uint16" if torch.finfo(tower.dtype).bits == 16 else "float32"
        self._files = BankFiles(self.folder, table.fingerprint, len(table), tower.out_dim, stored, self.block)

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """(B,) rows of the table -> (B,D) float32 features, on the CPU."""
        self.fill(rows)
        return torch.from_numpy(self._files.take(rows)).view(self.tower.dtype).float()

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Compute the missing blocks of these rows; wait for those that other processes are computing."""
        for block in [each for each in self._files.missing(rows) if not self._filled(each)]:
            began = perf_counter()
            with self._files.alone(block, wait=True):
                FeatureBank.spent += perf_counter() - began
                if not self._files.has(block):  # the other process was killed
                    self._fill_block(block)

    def seconds(self, rows: NDArray[np.int64]) -> float:
        """Seconds that computing these rows' blocks took, whoever computed them."""
        return self._files.seconds(rows)

    def _filled(self, block: int) -> bool:
        """Compute a block unless another process has done so meanwhile; false if one is doing so."""
        with self._files.alone(block, wait=False) as alone:
            if alone and not self._files.has(block):
                self._fill_block(block)
        return alone

    @torch.no_grad()
    def _fill_block(self, block: int) -> None:
        began = perf_counter()
        start = block * self.block
        stop = min(start + self.block, len(self.table))
        pixels = self._pixels(filled_up(np.arange(start, stop), self.block), block)
        with torch.autocast(self.device.type, enabled=False):  # a row is one value, whoever asks for it first
            features = self.tower(pixels)[: stop - start].to(self.tower.dtype).cpu().contiguous()
        took = perf_counter() - began
        self._files.write(block, features.view(torch.uint8).numpy().tobytes(), took)
        FeatureBank.spent += took

    def _pixels(self, rows: NDArray[np.int64], block: int) -> Tensor:
        """(n,) rows -> (n,3,S,S)."""
        if self.view is None:
            return evaluation(sent(torch.from_numpy(self.table.pixels(rows)), self.device), self.tower.pixels)
        draw = rng.generator(self.view.number, "view", block)
        return augmented(as_tensors(self.table.whole(rows), self.device), self.tower.pixels, self.view.how, draw)


def block_rows(tower: Tower, table: ImageTable, device: torch.device) -> int:
    """Rows of a block of this table's bank: on a GPU as many as its memory has room for, a power of two times BLOCK.

    A bank of another GPU's size of blocks is another bank: so this is the GPU's whole memory, not what is free.
    """
    if device.type != "cuda":
        return BLOCK
    side, tokens = tower.pixels.size, tower.grid[0] * tower.grid[1] + 1
    # of an image: its pixels in float32 before and after each axis is resampled; a block's widest layers hold 16 times
    # the width, of queries, keys, values, hidden units and what is added to them
    bytes_of_one = 4 * 4 * 3 * side**2 + 16 * tokens * tower.width * tower.dtype.itemsize
    rows = BLOCK
    while rows < min(MOST, len(table)) and 2 * rows * bytes_of_one <= SHARE * memory_of(device):
        rows *= 2
    return rows


def working_seconds() -> float:
    """A clock that stands still while banks are filled: what is shared by all is no cost of whoever came first."""
    return perf_counter() - FeatureBank.spent
