"""Readers of images: Parquet files as on the Hugging Face Hub, and folders of classes.

A reader finds encoded images and their labels; `ImageTable.decode` decodes them.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clsim.data.sources import Found, Source, fingerprint_files, held_out
from clsim.errors import RequestError

__all__ = ["Found", "Hub", "Source", "held_out", "parquet_files", "read_parquet"]


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    repository: str
    revision: str  # a commit, so that the images never change
    folder: str = ""  # the folder to read if the repository has several sets


def parquet_files(data_dir: Path | None, folder: str, split: str, hub: Hub | None = None) -> list[Path]:
    """The files of one split: `data_dir/folder/split*.parquet`, or else the Hub's.

    If there are none, raises RequestError that explains where they were expected and how to get them.
    """
    if data_dir is not None:
        found = sorted((data_dir / folder).glob(f"{split}*.parquet"))
        if found:
            return found
        if not data_dir.is_dir():
            raise RequestError(f"no such data directory: {data_dir}")
    looked = f"no {folder}/{split}*.parquet in {data_dir}" if data_dir is not None else "no --data-dir is given"
    if hub is None:
        raise RequestError(f"{looked}; put the files of {folder!r} there")
    return _hub_files(hub, folder, split, looked)


def _hub_files(hub: Hub, folder: str, split: str, looked: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    pattern = f"{hub.folder}/*{split}*.parquet" if hub.folder else f"*{split}*.parquet"
    try:
        root = Path(
            snapshot_download(hub.repository, repo_type="dataset", revision=hub.revision, allow_patterns=[pattern])
        )
    except Exception as error:  # the Hub's client raises many types, which all mean the same for a user
        raise RequestError(
            f"{looked}, and the Hub's {hub.repository} (revision {hub.revision}) is not available here "
            f"({type(error).__name__}): on a machine with network access run `hf download {hub.repository} "
            f"--repo-type dataset --revision {hub.revision}`, and put its {pattern} into {folder}/ below "
            f"--data-dir (or CLSIM_DATA_DIR)"
        ) from error
    files = sorted((root / hub.folder).rglob("*.parquet"))
    found = [path for path in files if split in path.name or split in path.parent.name]
    if not found:
        raise RequestError(f"{hub.repository} has no {pattern} at revision {hub.revision}")
    return found


def read_parquet(files: Sequence[Path], image: str, label: str, domain: str | None = None) -> Source:
    """Parquet files with an image column ({bytes, path}, or bytes) and an integer or string label column.

    Images are read on demand, fastest in the order of the files; only a few are in memory at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    for column in (column for column in (image, label, domain) if column is not None):
        if column not in schema.names:
            raise RequestError(f"{files[0]} has no column {column!r}; it has: {', '.join(schema.names)}")
    struct = pa.types.is_struct(schema.field(image).type)
    small = [column for column in (label, domain, f"{image}.path" if struct else None) if column is not None]
    # not read_table: only this function can read a part of a struct
    table = pa.concat_tables(pq.ParquetFile(file).read(columns=small) for file in files)
    if len(table) == 0:
        raise RequestError(f"{files[0]} has no rows")
    paths = [""] * len(table)
    if struct:
        paths = [path or "" for chunk in table[image].chunks for path in chunk.field("path").to_pylist()]
    labels, class_names = _categories(table[label], _declared_names(schema, label))
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()
    if domain is not None:
        domains, domain_names = _categories(table[domain], _declared_names(schema, domain))
    stem = ", ".join(file.name for file in files[:1])
    return Source(
        read=_RowGroups(files, f"{image}.bytes" if struct else image).read,
        names=[path or f"row {i} of {stem}" for i, path in enumerate(paths)],
        labels=labels,
        class_names=class_names,
        fingerprint=fingerprint_files(files, image, label, domain or ""),
        domains=domains,
        domain_names=domain_names,
    )


class _RowGroups:
    """One column of bytes of several Parquet files, read a few rows at a time: a row group may be as large as a file.

    Reading in order is fast, and so is a jump to a later group; a jump back reads its group from the beginning.
    """

    AT_ONCE = 64  # rows
    BUFFER = 1 << 20  # bytes of a file; without one, Arrow reads the whole column of a group first

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self.column = column
        self.groups: list[tuple[Path, int]] = []
        counts = [0]
        for file in files:
            about = pq.read_metadata(file)
            for group in range(about.num_row_groups):
                self.groups.append((file, group))
                counts.append(about.row_group(group).num_rows)
        self.first = np.cumsum(counts)
        self.lock = threading.Lock()
        self.group = -1  # the group that is being read
        self.batches: Iterator[Any] = iter(())
        self.held: Any = ()  # rows of it that are in memory,
        self.start = 0  # and the number of the first of these rows

    def read(self, i: int) -> bytes:
        """The bytes in row i."""
        group = int(np.searchsorted(self.first, i, side="right")) - 1
        with self.lock:
            if group != self.group or i < self.start:
                self._enter(group)
            while i >= self.start + len(self.held):
                self.start += len(self.held)
                self.held = _flat(next(self.batches).column(0))
            image: bytes = self.held[i - self.start].as_py()
            return image

    def _enter(self, group: int) -> None:
        import pyarrow.parquet as pq

        file, number = self.groups[group]
        opened = pq.ParquetFile(file, buffer_size=self.BUFFER, pre_buffer=False)
        self.batches = opened.iter_batches(self.AT_ONCE, [number], [self.column], use_threads=False)
        self.group, self.start, self.held = group, int(self.first[group]), ()


def _flat(column: Any) -> Any:
    """The bytes of an image column that is a struct, or the column itself."""
    import pyarrow as pa

    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _declared_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Category names from the schema's `huggingface` metadata (info.features.<column>.names), if declared."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(column, {}).get("names")
    return tuple(names) if names else None


def _categories(column: Any, declared: tuple[str, ...] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A column of integers or strings -> ids (N,) and names; undeclared names are sorted."""
    values = column.to_numpy()
    if np.issubdtype(values.dtype, np.integer):
        names = declared or tuple(str(i) for i in range(int(values.max()) + 1))
        if values.min() < 0 or values.max() >= len(names):
            raise RequestError(f"labels run from {values.min()} to {values.max()}, but {len(names)} names are declared")
        return values.astype(np.int64), names
    if not all(isinstance(value, str) for value in values):
        raise RequestError(f"labels are whole numbers or strings without gaps, not {column.type}")
    names = declared or tuple(sorted(set(values)))
    strange = sorted(set(values) - set(names))
    if strange:
        raise RequestError(f"label {strange[0]!r} is not among the declared names: {', '.join(names)}")
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids[value] for value in values], dtype=np.int64), names
