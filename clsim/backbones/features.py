"""FeatureBank: the cached features of a frozen tower, computed once for each image."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from time import perf_counter
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim import rng
from clsim.backbones.towers import Tower
from clsim.data.batches import as_tensors, filled_up
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, augmented, evaluation

BLOCK = 32  # rows computed together; fixed, because a feature's last bits depend on the shape of its batch


class View(NamedTuple):
    """One augmented image for each clean one; its crops are determined by these two fields."""

    number: int
    how: Augmentation


class FeatureBank:
    """Pooled features of a table's images from a frozen tower, in a file that all runs share. They are of the clean
    images, or of one augmented view of each.

    Rows are computed when they are first needed, in fixed blocks of neighbouring rows. So every process writes the same
    bits in every order: a bank that was interrupted, or filled by two processes at the same time, is equal to a bank
    filled at once. A block is complete when its flag is set, which is written after its data.
    """

    spent: ClassVar[float] = 0.0  # seconds that this process has filled banks for

    def __init__(
        self, tower: Tower, table: ImageTable, device: torch.device, cache_dir: Path, view: View | None = None
    ) -> None:
        self.tower = tower
        self.table = table
        self.device = device
        self.view = view
        self.bytes_each = torch.finfo(tower.dtype).bits // 8
        # another number of threads may add in another order: the last bits belong to it
        threads = f"/{torch.get_num_threads()} threads" if device.type == "cpu" else ""
        key = f"{tower.fingerprint()}/{table.fingerprint}/{device.type}/{BLOCK}{threads}"
        if view is not None:
            key += f"/view {view.number}, {view.how}"
        self.folder = cache_dir / "features" / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        if not self.folder.exists():
            self._create()
        self._flags = np.memmap(self.folder / "filled", dtype=np.uint8, mode="r")
        stored = np.uint16 if self.bytes_each == 2 else np.float32
        self._data = np.memmap(self.folder / "features", dtype=stored, mode="r", shape=(len(table), tower.out_dim))

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """(B,) rows of the table -> (B,D) float32 features, on the CPU."""
        self.fill(rows)
        taken = torch.from_numpy(np.take(self._data, rows, axis=0))
        return taken.view(self.tower.dtype).float()

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Compute the missing blocks of these rows."""
        blocks = np.unique(rows // BLOCK)
        missing = blocks[self._flags[blocks] == 0]
        if len(missing):
            with (self.folder / "features").open("r+b") as data, (self.folder / "filled").open("r+b") as flags:
                for block in missing.tolist():
                    self._fill_block(block, data.fileno(), flags.fileno())

    def seconds(self, rows: NDArray[np.int64]) -> float:
        """Seconds that computing these rows' blocks took, whoever computed them."""
        taken = np.fromfile(self.folder / "seconds", dtype=np.float32)
        return float(taken[np.unique(rows // BLOCK)].sum(dtype=np.float64))

    @torch.no_grad()
    def _fill_block(self, block: int, data: int, flags: int) -> None:
        began = perf_counter()
        start = block * BLOCK
        stop = min(start + BLOCK, len(self.table))
        pixels = self._pixels(filled_up(np.arange(start, stop), BLOCK), block)
        with torch.autocast(self.device.type, enabled=False):  # a row is one value, whoever asks for it first
            features = self.tower(pixels)[: stop - start].to(self.tower.dtype).cpu().contiguous()
        os.pwrite(data, features.view(torch.uint8).numpy().tobytes(), start * self.tower.out_dim * self.bytes_each)
        took = perf_counter() - began
        with (self.folder / "seconds").open("r+b") as seconds:
            os.pwrite(seconds.fileno(), np.float32(took).tobytes(), 4 * block)
        os.pwrite(flags, b"\x01", block)
        FeatureBank.spent += took

    def _pixels(self, rows: NDArray[np.int64], block: int) -> Tensor:
        """(BLOCK,) rows -> (BLOCK,3,S,S)."""
        if self.view is None:
            return evaluation(torch.from_numpy(self.table.pixels(rows)).to(self.device), self.tower.pixels)
        draw = rng.generator(self.view.number, "view", block)
        return augmented(as_tensors(self.table.whole(rows), self.device), self.tower.pixels, self.view.how, draw)

    def _create(self) -> None:
        """Create files of the full size with one rename. Disk space is reserved: a full disk is an error here."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.folder.parent))
        try:
            blocks = -(-len(self.table) // BLOCK)
            for name, size in (
                ("features", len(self.table) * self.tower.out_dim * self.bytes_each),
                ("filled", blocks),
                ("seconds", 4 * blocks),
            ):
                with (temporary / name).open("wb") as stream:
                    for start in range(0, size, 1 << 20):
                        stream.write(bytes(min(1 << 20, size - start)))
            about = {"table": self.table.fingerprint, "rows": len(self.table), "width": self.tower.out_dim}
            (temporary / "bank.json").write_text(json.dumps(about))
            try:
                temporary.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # raise, unless another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def working_seconds() -> float:
    """A clock that stands still while banks are filled: what is shared by all is no cost of whoever came first."""
    return perf_counter() - FeatureBank.spent
