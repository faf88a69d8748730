"""Arrow files as `save_to_disk` of Hugging Face's datasets writes them: state.json, dataset_dict.json, data-*.arrow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsim.data.labels import UNDECLARED, Values, column_values, declared_names
from clsim.data.raw import Raw, Wanted, by_column
from clsim.data.readers import image_parts, images_elsewhere, require_names, schema_columns
from clsim.data.shards import SplitFiles
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

STATE, SPLITS = "state.json", "dataset_dict.json"


def saved_files(folder: Path) -> list[SplitFiles]:
    """The files of each split that `save_to_disk` wrote to a folder; none if it did not.

    Raises RequestError if a file is missing, or if its JSON files are damaged.
    """
    if (folder / SPLITS).exists():
        splits = _json(folder / SPLITS).get("splits")
        if not isinstance(splits, list) or not all(_is_plain(name) for name in splits):
            raise RequestError(f"{shown(folder / SPLITS)} has no list of 'splits'")
        return [_state(folder / split, split) for split in splits]
    return [_state(folder, "")] if (folder / STATE).exists() else []


def _state(folder: Path, split: str) -> SplitFiles:
    about = _json(folder / STATE)
    if about.get("_indices_data_files"):
        raise RequestError(f"{shown(folder)} has an index of its rows; save it again after `flatten_indices()`")
    listed = about.get("_data_files")
    names = (
        [each.get("filename") if isinstance(each, dict) else None for each in listed or ()]
        if isinstance(listed, list)
        else []
    )
    if not names or not all(_is_plain(name) for name in names):
        raise RequestError(f"{shown(folder / STATE)} has no list of '_data_files'")
    given = about.get("_split")
    files = tuple(folder / str(name) for name in names)
    for file in files:
        require_file(file)
    return SplitFiles(split or (given if isinstance(given, str) else ""), files)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _json(file: Path) -> dict[str, Any]:
    require_file(file)
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{shown(file)} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise RequestError(f"{shown(file)} is no JSON object")
    return content


def read_arrow(groups: Sequence[SplitFiles], wanted: Wanted) -> list[Raw]:
    """The splits of files. Raises RequestError that names the file and the column."""
    found = []
    for split, files in groups:
        found += _split(split, files, wanted)
    return found


def _split(split: str, files: Sequence[Path], wanted: Wanted) -> list[Raw]:
    tables = [(file, _table(file)) for file in files]
    filled = [(file, table) for file, table in tables if len(table)]
    if not filled:
        raise RequestError(f"{shown(files[0])} has no rows")
    file, first = filled[0]
    columns = schema_columns(file, first.schema, wanted)
    for file, table in filled:
        for column in filter(None, columns[:4]):
            if column not in table.column_names:
                raise RequestError(f"{shown(file)} has no column {column!r}; it has: {', '.join(table.column_names)}")
    schemas = [(file, table.schema) for file, table in tables]
    images = _Images(columns.image)
    for file, table in filled:
        images.add(file, table)

    def of(column: str) -> list[tuple[Path, Values]]:
        return [(file, column_values(file, column, _checked(file, table, column))) for file, table in filled]

    raw = Raw(
        split=split,
        read=images.read,
        names=images.names,
        labels=of(columns.label),
        what=f"column {columns.label!r}",
        files=[*files, *images.elsewhere.values()],
        settings=(columns.image, columns.label, columns.domain or ""),
        declared=declared_names(schemas, columns.label),
        domains=None if columns.domain is None else of(columns.domain),
        declared_domains=UNDECLARED if columns.domain is None else declared_names(schemas, columns.domain),
        notes=(columns.note,),
    )
    if columns.split is None:
        return [raw]
    return by_column(raw, columns.split, np.concatenate([part for _, part in of(columns.split)]))


def _table(file: Path) -> Any:
    """The file as an Arrow table that stays on disk. Raises RequestError if it is damaged."""
    import pyarrow as pa

    require_file(file)
    try:
        with pa.memory_map(str(file)) as stream:
            whole = stream.read_buffer(6).to_pybytes() == b"ARROW1"  # `feather` files; datasets writes streams
            stream.seek(0)
            table = (pa.ipc.open_file if whole else pa.ipc.open_stream)(stream).read_all()
            require_names(table.schema)
            return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> RequestError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RequestError(f"{shown(file)} cannot be read as Arrow; it is truncated or damaged ({reason})")


def _checked(file: Path, table: Any, column: str) -> Any:
    """A column whose offsets are inside of its data, also in a damaged file. Raises RequestError if they are not."""
    import pyarrow as pa

    try:
        table[column].validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error
    return table[column]


class _Images:
    """The images of several tables."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.chunks: list[Any] = []  # arrays of bytes
        self.first = [0]
        self.names: list[str] = []
        self.elsewhere: dict[int, Path] = {}

    def add(self, file: Path, table: Any) -> None:
        """Append a table. Raises RequestError for rows without an image."""
        import pyarrow as pa

        data, paths = image_parts(file, table.schema, self.column)
        column, start = _checked(file, table, self.column), self.first[-1]
        names: list[str] = []
        missing: list[int] = []
        for chunk in column.chunks:
            parts = {self.column: chunk}
            if pa.types.is_struct(chunk.type):
                parts = {f"{self.column}.{each.name}": chunk.field(each.name) for each in chunk.type}
                if chunk.null_count:
                    raise RequestError(f"{shown(file)}: column {self.column!r} has no image in {chunk.null_count} rows")
            empty = parts[data].is_null().to_numpy(zero_copy_only=False) if data else np.ones(len(chunk), dtype=bool)
            missing += (np.flatnonzero(empty) + len(names)).tolist()
            names += [path or "" for path in parts[paths].to_pylist()] if paths else [""] * len(chunk)
            self.chunks.append(parts[data] if data else None)
            self.first.append(self.first[-1] + len(chunk))
        found = images_elsewhere(file, self.column, missing, names)
        self.elsewhere |= {start + row: path for row, path in found.items()}
        self.names += [name or f"row {start + i} of {file.name}" for i, name in enumerate(names)]

    def read(self, i: int) -> bytes:
        """The bytes of image i."""
        if i in self.elsewhere:
            return self.elsewhere[i].read_bytes()
        chunk = int(np.searchsorted(self.first, i, side="right")) - 1
        image: bytes = self.chunks[chunk][i - self.first[chunk]].as_py()
        return image
