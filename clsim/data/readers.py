"""Readers of Parquet files as on the Hugging Face Hub, complete and by name; folders are read in `folders`.

A reader finds encoded images and their labels; `ImageTable.decode` decodes them.
"""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clsim.data.columns import Columns, find_columns, typed_columns
from clsim.data.labels import UNDECLARED, Values, categories, column_values, declared_names, is_text
from clsim.data.raw import Raw, Wanted
from clsim.data.shards import SHARD, check_shards
from clsim.data.sources import Found, Source, held_out, require_file
from clsim.errors import RequestError
from clsim.hub import interruptible, why
from clsim.reads import READ

__all__ = ["Found", "Hub", "Source", "held_out", "parquet_files", "read_parquet"]


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    repository: str
    revision: str  # a commit, so that the images never change
    folder: str = ""  # the folder to read if the repository has several sets


def parquet_files(data_dir: Path | None, folder: str, split: str, hub: Hub | None = None) -> list[Path]:
    """The files of one split: `data_dir/folder/split*.parquet`, or else the Hub's.

    If there are none, raises RequestError that explains where they were expected and how to get them; also if a file is
    missing, or if there are two sets of files.
    """
    if data_dir is not None:
        found = local_files(data_dir / folder, split)[0]
        if found:
            return found
        if not data_dir.is_dir():
            why = f" (it is a file); here it must be a folder with {folder}/" if data_dir.exists() else ""
            raise RequestError(f"no such data directory: {data_dir}{why}")
    looked = f"no {folder}/{split}*.parquet in {data_dir}" if data_dir is not None else "no --data-dir is given"
    if hub is None:
        raise RequestError(f"{looked}; put the files of {folder!r} there")
    return _hub_files(hub, folder, split, looked)


def local_files(folder: Path, split: str) -> tuple[list[Path], list[Path]]:
    """The split's files in a folder, and other files whose names begin like it: train_noisy_labels.parquet.

    A file with a longer name is the split if it is the only one. Raises RequestError as `check_shards` does.
    """
    every = sorted(folder.glob(f"{split}*.parquet"))
    shards = [file for file in every if SHARD.fullmatch(file.name.removeprefix(split))]
    if not shards:
        if len(every) > 1:
            names = ", ".join(file.name for file in every)
            raise RequestError(f"{folder} has several files that may be the split {split!r}: {names}; keep one")
        return every, []
    check_shards(shards, split)
    return shards, [file for file in every if file not in shards]


def _hub_files(hub: Hub, folder: str, split: str, looked: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    pattern = f"{hub.folder}/*{split}*.parquet" if hub.folder else f"*{split}*.parquet"
    options = {"revision": hub.revision, "allow_patterns": [pattern]}
    try:
        root = Path(interruptible(partial(snapshot_download, hub.repository, repo_type="dataset", **options)))
    except Exception as error:  # the Hub's client raises many types, which all mean the same for a user
        raise RequestError(
            f"{looked}, and the Hub's {hub.repository} (revision {hub.revision}) cannot be downloaded: {why(error)}. "
            f"On a machine with network access run `hf download {hub.repository} "
            f"--repo-type dataset --revision {hub.revision}`, and put its {pattern} into {folder}/ below "
            f"--data-dir (or CLSIM_DATA_DIR)"
        ) from error
    if len(hub.revision) < 40:  # a branch, which may move
        READ.uncertain = True
    files = sorted((root / hub.folder).rglob("*.parquet"))
    found = [path for path in files if split in path.name or split in path.parent.name]
    if not found:
        raise RequestError(f"{hub.repository} has no {pattern} at revision {hub.revision}")
    check_shards([path for path in found if "-of-" in path.name], split)
    return found


class _Shard(NamedTuple):
    """What is known of a file without reading its images."""

    file: Path
    num_rows: int
    schema: Any
    data: str  # the column of encoded images; empty if there are only paths
    paths: str  # the column of their paths; empty if there is none


def read_parquet(
    files: Sequence[Path],
    image: str,
    label: str,
    domain: str | None = None,
    other_split: Sequence[Path] | None = None,
) -> Source:
    """Parquet files with an image column and a label column of whole numbers or text.

    An image is a struct of bytes and path, or bytes, or the path of a file next to the Parquet file (or one folder
    above). Images are read on demand, fastest in the order of the files; only a few are in memory at a time. If names
    of numbers are not declared, the classes are the numbers that occur, also in the files of `other_split`. Raises
    RequestError that names the file and the column.
    """
    raw = parquet_split(files, image, label, domain)
    others = _other_labels(other_split, label) if raw.declared.names is None else None
    labels = categories(raw.labels, raw.what, raw.declared, others)
    domains = None
    if raw.domains is not None:
        domains = categories(raw.domains, f"column {domain!r}", raw.declared_domains, ())
    return raw.source(labels, domains)


def parquet_split(files: Sequence[Path], image: str, label: str, domain: str | None = None, split: str = "") -> Raw:
    """The files of one split, see `read_parquet`."""
    columns = [column for column in (image, label, domain) if column is not None]
    shards = [_shard(file, image, columns) for file in files]
    filled = [shard for shard in shards if shard.num_rows]
    if not filled:
        raise RequestError(f"{files[0]} has no rows")
    small = [_small(shard, columns) for shard in filled]
    schemas = [(shard.file, shard.schema) for shard in shards]

    def of(column: str) -> list[tuple[Path, Values]]:
        return [(shard.file, values[column]) for shard, values in zip(filled, small, strict=True)]

    paths = [path for values in small for path in values[image]]
    elsewhere = _files_elsewhere(filled, image, paths)
    groups = _RowGroups([shard.file for shard in filled], [shard.data for shard in filled])
    return Raw(
        split=split,
        read=lambda i: elsewhere[i].read_bytes() if i in elsewhere else groups.read(i),
        names=[path or f"row {i} of {files[0].name}" for i, path in enumerate(paths)],
        labels=of(label),
        what=f"column {label!r}",
        files=[*files, *elsewhere.values()],
        settings=(image, label, domain or ""),
        declared=declared_names(schemas, label),
        domains=None if domain is None else of(domain),
        declared_domains=UNDECLARED if domain is None else declared_names(schemas, domain),
    )


def parquet_schema(file: Path) -> Any:
    """The columns of a file, as an Arrow schema. Raises RequestError if it is no Parquet file."""
    return _opened(file).schema_arrow


def schema_columns(file: Path, schema: Any, wanted: Wanted) -> Columns:
    """The columns to read of a Parquet or Arrow file; see `find_columns`."""
    images = typed_columns(schema.metadata, "Image")
    images = images or [each.name for each in schema if _is_bytes(each.type) or _has_bytes(each.type)]
    return find_columns(file, schema.names, wanted, images, typed_columns(schema.metadata, "ClassLabel"))


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(part.name == "bytes" and _is_bytes(part.type) for part in kind)


def columns_of(files: Sequence[Path], column: str) -> Values:
    """The values of a column in all files."""
    return np.concatenate([column_values(file, column, _columns(file, [column])[column]) for file in files])


def _opened(file: Path, **options: Any) -> Any:
    """The file as a pyarrow ParquetFile. Raises RequestError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(file)
    try:
        opened = pq.ParquetFile(file, **options)
        require_names(opened.schema_arrow)
        return opened
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error


def require_names(schema: Any) -> None:
    """Raises UnicodeDecodeError if the name of a column, or of its part, is damaged."""
    import pyarrow as pa

    for column in schema:
        for part in (column, *(column.type if pa.types.is_struct(column.type) else ())):
            str(part.name)


def _unreadable(file: Path, error: Exception, column: str = "") -> RequestError:
    where = f"column {column!r} of {file}" if column else str(file)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RequestError(f"{where} cannot be read as Parquet; it is truncated, damaged, or of another format ({reason})")


def _shard(file: Path, image: str, columns: Sequence[str]) -> _Shard:
    """A file with its columns. Raises RequestError if one is missing, or if it has no images."""
    opened = _opened(file)
    schema, num_rows = opened.schema_arrow, opened.metadata.num_rows
    if num_rows == 0:
        return _Shard(file, 0, schema, "", "")
    for column in columns:
        if column not in schema.names:
            raise RequestError(f"{file} has no column {column!r}; it has: {', '.join(schema.names)}")
    return _Shard(file, num_rows, schema, *image_parts(file, schema, image))


def image_parts(file: Path, schema: Any, image: str) -> tuple[str, str]:
    """Names of the parts of an image column that have bytes and paths, empty if there is none of the kind.

    Raises RequestError if there are neither.
    """
    import pyarrow as pa

    kind = schema.field(image).type
    parts = {f"{image}.{part.name}": part.type for part in kind} if pa.types.is_struct(kind) else {image: kind}
    data = [name for name, part in parts.items() if _is_bytes(part) and name in (image, f"{image}.bytes")]
    paths = [name for name, part in parts.items() if is_text(part) and name in (image, f"{image}.path")]
    if not data and not paths:
        raise RequestError(
            f"{file}: column {image!r} has no images: it is {kind}, and neither bytes, nor paths, nor a "
            "struct with bytes or path"
        )
    return "".join(data), "".join(paths)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _columns(file: Path, columns: list[str]) -> Any:
    """Columns of a file, as an Arrow table. Raises RequestError if the file is damaged."""
    import pyarrow as pa

    try:
        return _opened(file).read(columns=columns)  # not read_table: only this function can read a part of a struct
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error, ", ".join(columns)) from error


def _small(shard: _Shard, columns: Sequence[str]) -> dict[str, Any]:
    """Column -> its values: (n,) numbers or text, and the paths of images (empty if they have none)."""
    import pyarrow as pa

    image, *others = columns
    table = _columns(shard.file, [*others, *([shard.paths] if shard.paths else [])])
    values: dict[str, Any] = {column: column_values(shard.file, column, table[column]) for column in others}
    values[image] = [""] * shard.num_rows
    if shard.paths:
        chunks = table[image].chunks
        chunks = [chunk.field("path") if pa.types.is_struct(chunk.type) else chunk for chunk in chunks]
        try:
            values[image] = [path or "" for chunk in chunks for path in chunk.to_pylist()]
        except UnicodeDecodeError as error:
            raise RequestError(f"{shard.file}: column {image!r} has paths that are not UTF-8") from error
    return values


def _other_labels(files: Sequence[Path] | None, column: str) -> list[Values] | None:
    """The labels of another split."""
    if files is None:
        return None
    return [
        column_values(file, column, _columns(file, [column])[column])
        for file in files
        if column in _opened(file).schema_arrow.names
    ]


def _files_elsewhere(shards: Sequence[_Shard], image: str, paths: Sequence[str]) -> dict[int, Path]:
    """Row -> the image's file, for rows that have a path and no bytes, of all shards."""
    found: dict[int, Path] = {}
    start = 0
    for shard in shards:
        own = images_elsewhere(shard.file, image, _without_bytes(shard), paths[start : start + shard.num_rows])
        found |= {start + row: path for row, path in own.items()}
        start += shard.num_rows
    return found


def images_elsewhere(file: Path, image: str, missing: Sequence[int], paths: Sequence[str]) -> dict[int, Path]:
    """Row -> the image's file, for the rows that have no bytes. Raises RequestError if there is no such file."""
    found: dict[int, Path] = {}
    if len(missing):  # a file that appears in the first place would be read in place of that in the second
        READ.uncertain = True
    for row in missing:
        path = paths[row]
        if not path:
            raise RequestError(
                f"{file}: column {image!r} has no image in {len(missing)} of {len(paths)} rows, first in row {row}"
            )
        places = [folder / path for folder in (file.parent, file.parent.parent)]
        there = [place for place in places if place.is_file()]
        if not there:
            raise RequestError(
                f"{file}: column {image!r} has the path {path!r} in row {row}, and no bytes; "
                f"this file is neither in {places[0].parent} nor in {places[1].parent}"
            )
        found[row] = there[0]
    return found


def _without_bytes(shard: _Shard) -> list[int]:
    """The rows without bytes. Images are read only if the file's statistics count such rows."""
    import pyarrow as pa

    if not shard.data:
        return list(range(shard.num_rows))
    opened = _opened(shard.file, pre_buffer=False)
    about = opened.metadata
    groups = list(range(about.num_row_groups))
    parts = [about.row_group(group).column(i) for group in groups for i in range(about.num_columns)]
    counted = [part.statistics for part in parts if part.path_in_schema == shard.data]
    if not any(each is not None and each.null_count for each in counted):
        return []
    try:
        batches = opened.iter_batches(_RowGroups.AT_ONCE, groups, [shard.data], use_threads=False)
        empty = [_flat(batch.column(0)).is_null().to_numpy(zero_copy_only=False) for batch in batches]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(shard.file, error, shard.data) from error
    rows: list[int] = np.flatnonzero(np.concatenate(empty)).tolist()
    return rows


class _RowGroups:
    """One column of bytes of several Parquet files, read a few rows at a time: a row group may be as large as a file.

    Reading in order is fast, and so is a jump to a later group; a jump back reads its group from the beginning.
    """

    AT_ONCE = 64  # rows
    BUFFER = 1 << 20  # bytes of a file; without one, Arrow reads the whole column of a group first

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.groups: list[tuple[Path, str, int]] = []  # file, its column, and the group's number in it
        counts = [0]
        for file, column in zip(files, columns, strict=True):
            about = _opened(file).metadata
            for group in range(about.num_row_groups):
                self.groups.append((file, column, group))
                counts.append(about.row_group(group).num_rows)
        self.first = np.cumsum(counts)
        self.lock = threading.Lock()
        self.group = -1  # the group that is being read
        self.batches: Iterator[Any] = iter(())
        self.held: Any = ()  # rows of it that are in memory,
        self.start = 0  # and the number of the first of these rows

    def read(self, i: int) -> bytes:
        """The bytes in row i. Raises RequestError if the file is damaged there."""
        import pyarrow as pa

        group = int(np.searchsorted(self.first, i, side="right")) - 1
        with self.lock:
            try:
                if group != self.group or i < self.start:
                    self._enter(group)
                while i >= self.start + len(self.held):
                    self.start += len(self.held)
                    self.held = _flat(next(self.batches).column(0))
                image: bytes | None = self.held[i - self.start].as_py()
            except (pa.ArrowException, OSError, StopIteration) as error:
                self.group = -1
                raise _unreadable(self.groups[group][0], error, self.groups[group][1]) from error
            if image is None:
                raise RequestError(f"{self.groups[group][0]}: column {self.groups[group][1]!r} has no image in row {i}")
            return image

    def _enter(self, group: int) -> None:
        file, column, number = self.groups[group]
        opened = _opened(file, buffer_size=self.BUFFER, pre_buffer=False)
        self.batches = opened.iter_batches(self.AT_ONCE, [number], [column], use_threads=False)
        self.group, self.start, self.held = group, int(self.first[group]), ()


def _flat(column: Any) -> Any:
    """The bytes of an image column that is a struct, or the column itself."""
    import pyarrow as pa

    return column.field("bytes") if pa.types.is_struct(column.type) else column
