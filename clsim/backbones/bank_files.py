"""The files of a feature bank: rows in blocks that are filled in any order, by any process, each with its checksum.

`features` has the rows; `blocks` has the checksum of each block and the seconds that it took; `filled` has a flag for
each block, which is written last; `bank.json` has what the bank is of. A checksum covers place, rows and seconds.
"""

import contextlib
import errno
import fcntl
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.data import entries
from clsim.errors import writing
from clsim.sealed import sealed, unsealed

ABOUT = "bank.json"
FORM = 3  # of the files
LOCK = "hhqqi"  # C's struct flock with an offset of 64 bits: kind, origin, start, length, process
RECORD = np.dtype([("seconds", "<f4"), ("checksum", "<u4")])  # of a block; one write, so that both are of one process


class BankFiles:
    """N rows of `width` numbers in blocks of `block` rows. They are opened once: they may be removed meanwhile."""

    def __init__(self, folder: Path, table: str, rows: int, width: int, dtype: str, block: int) -> None:
        """Open or make them; `dtype` is NumPy's. A broken bank is set aside, with a line on stderr, and made again.

        Raises WriteFailed, or another OSError, if they cannot be made.
        """
        about: dict[str, Any] = {"form": FORM, "key": folder.name, "table": table}
        about |= {"rows": rows, "width": width, "dtype": dtype, "block": block}

        def check(folder: Path) -> list[str]:
            return faults(folder, about)

        if not entries.usable(folder, check):
            with entries.made(folder, check) as temporary:
                _create(temporary, about)
        self.folder = folder
        self._block = block
        self._mode = "r+b" if os.access(folder / "filled", os.W_OK) else "rb"
        self._files = {name: (folder / name).open(self._mode, buffering=0) for name in ("features", "blocks", "filled")}
        self._rows = np.memmap(self._files["features"], dtype=dtype, mode="r", shape=(rows, width))
        self._records = np.memmap(self._files["blocks"], dtype=RECORD, mode="r")
        self._flags = np.memmap(self._files["filled"], dtype=np.uint8, mode="r")
        self._known = np.zeros(len(self._flags), dtype=bool)  # blocks that this process has checked or written

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            file.close()

    def missing(self, rows: NDArray[np.int64]) -> list[int]:
        """The blocks of these rows that must be computed: never filled, or broken, which is said on stderr."""
        blocks = np.unique(rows // self._block)
        missing, broken = [], 0
        for block in blocks[~self._known[blocks]].tolist():
            if not self.has(block):
                missing.append(block)
                broken += bool(self._flags[block])
        if broken:
            print(f"clsim: {broken} blocks of {self.folder} were broken and are computed again", file=sys.stderr)
        return missing

    def has(self, block: int) -> bool:
        """Whether a block is filled and not broken; its checksum is compared only once."""
        if not self._known[block] and self._flags[block]:
            self._known[block] = self._checksum(block) == self._records[block]["checksum"]
        return bool(self._known[block])

    @contextlib.contextmanager
    def alone(self, block: int, wait: bool) -> Iterator[bool]:
        """Lock one block against other processes and other objects of this one; false if it is locked and `wait` is not
        set. The kernel releases it when the process ends, in any way. Where locks fail, nothing waits.

        It locks the block's byte of `filled` for this open file. (POSIX's own locks of a range would be lost when any
        other object of this process closes the file.)
        """
        if self._mode == "rb" or not hasattr(fcntl, "F_OFD_SETLK"):
            yield True
            return
        file, command = self._files["filled"].fileno(), fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(file, command, struct.pack(LOCK, fcntl.F_WRLCK, os.SEEK_SET, block, 1, 0))
        except OSError as error:
            yield error.errno not in (errno.EAGAIN, errno.EACCES)
            return
        try:
            yield True
        finally:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(LOCK, fcntl.F_UNLCK, os.SEEK_SET, block, 1, 0))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(B,) rows -> (B,D) numbers as they are stored; no block of them may be `missing`."""
        return np.take(self._rows, rows, axis=0)

    def seconds(self, rows: NDArray[np.int64]) -> float:
        """Seconds that computing these rows' blocks took, whoever computed them."""
        blocks = np.unique(rows // self._block)
        filled = blocks[self._flags[blocks] != 0]
        return float(self._records[filled]["seconds"].sum(dtype=np.float64))

    def write(self, block: int, data: bytes, seconds: float) -> None:
        """Store a block's rows. Raises OSError with the folder's name."""
        if self._mode == "rb":
            why = "This user may only read it (CLSIM_CACHE_DIR names another cache)"
            raise PermissionError(errno.EACCES, why, str(self.folder))
        record = np.zeros((), dtype=RECORD)
        record["seconds"] = seconds
        record["checksum"] = _checksum(self.folder.name, block, data, record["seconds"].tobytes())
        width = self._rows.shape[1] * self._rows.itemsize
        with writing(self.folder, len(data)):
            for name, part, place in (
                ("features", data, block * self._block * width),
                ("blocks", record.tobytes(), block * RECORD.itemsize),
                ("filled", b"\x01", block),
            ):
                os.pwrite(self._files[name].fileno(), part, place)
        self._known[block] = True

    def _checksum(self, block: int) -> int:
        rows = self._rows[block * self._block : (block + 1) * self._block]
        return _checksum(self.folder.name, block, rows.tobytes(), self._records[block]["seconds"].tobytes())


def faults(folder: Path, about: dict[str, Any] | None = None, whole: bool = False) -> list[str]:
    """What is wrong with a bank, one text a file: with `bank.json` and sizes; if `whole`, also with every block.

    `about`: what `bank.json` must contain, if it is known.
    """
    try:
        stored = unsealed((folder / ABOUT).read_text(encoding="utf-8"))
        if about is not None and stored != about:
            return [f"{ABOUT} is of another bank"]
        if stored.get("form") != FORM:
            return []  # of an earlier version, and not used
        if about is None and stored.get("key") != folder.name:
            return [f"{ABOUT} is of another bank"]
        rows, width, block, dtype = (stored[name] for name in ("rows", "width", "block", "dtype"))
    except FileNotFoundError:
        return [f"{ABOUT} is missing"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{ABOUT} cannot be read ({type(error).__name__})"]
    found = []
    for name, size in _sizes(rows, width, dtype, block).items():
        try:
            with (folder / name).open("rb") as stream:
                actual = os.fstat(stream.fileno()).st_size
            if actual != size:
                found.append(f"{name} has {actual} bytes, not {size}")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    if whole and not found:
        files = BankFiles(folder, stored["table"], rows, width, dtype, block)
        found += ["filled has flags that no run writes"] if (files._flags > 1).any() else []
        broken = [i for i in np.flatnonzero(files._flags) if files._checksum(int(i)) != files._records[i]["checksum"]]
        found += [f"{len(broken)} blocks were changed"] if broken else []
    return found


def _sizes(rows: int, width: int, dtype: str, block: int) -> dict[str, int]:
    blocks = -(-rows // block)
    return {
        "features": rows * width * np.dtype(dtype).itemsize,
        "blocks": blocks * RECORD.itemsize,
        "filled": blocks,
    }


def _create(folder: Path, about: dict[str, Any]) -> None:
    """Files of the full size, so that a full disk is an error now. Raises WriteFailed with the size that is needed."""
    sizes = _sizes(about["rows"], about["width"], about["dtype"], about["block"])
    with writing(folder, sum(sizes.values())):
        for name, size in sizes.items():
            with (folder / name).open("wb") as stream:
                for start in range(0, size, 1 << 20):
                    stream.write(bytes(min(1 << 20, size - start)))
        (folder / ABOUT).write_text(sealed(about), encoding="utf-8")


def _checksum(bank: str, block: int, *parts: bytes) -> int:
    """CRC-32: some GB/s, and never equal for parts that differ in one run of up to 32 bits."""
    found = zlib.crc32(f"{bank}/{block}".encode())
    for part in parts:
        found = zlib.crc32(part, found)
    return found
