"""Lists of images and labels: CSV files and JSON lines, with paths relative to the file."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clsim.data.columns import Columns, find_columns, is_listing
from clsim.data.folders import image_suffixes
from clsim.data.labels import Values, listed_values
from clsim.data.raw import Raw, Wanted, by_column
from clsim.data.shards import SplitFiles
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
FIRST = 1 << 16  # bytes that are enough to see a header


class Listed(NamedTuple):
    """The columns of a list, all of one length."""

    names: tuple[str, ...]
    columns: dict[str, list[Any]]
    plain: bool  # whether everything is text, numbers too


def is_list(file: Path, wanted: Wanted) -> bool:
    """Whether a file is a list of images with labels, by its first line."""
    try:
        require_file(file)
        with file.open("rb") as stream:
            line = stream.read(FIRST).decode("utf-8-sig", errors="replace").partition("\n")[0]
        if file.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            first = json.loads(line)
            return isinstance(first, dict) and is_listing(list(first), wanted)
        row = next(csv.reader([line.strip("\r")], delimiter=_delimiter(file, line)), [])
    except (RequestError, OSError, ValueError, RecursionError, csv.Error):
        return False
    return is_listing([name.strip() for name in row], wanted) or (len(row) == 2 and _has_no_header(row))


def read_lists(groups: Sequence[SplitFiles], wanted: Wanted, tree: Path) -> list[Raw]:
    """The splits of files, and of their column of splits. Images must be files in `tree`.

    Raises RequestError that names the file and what is wrong.
    """
    found = []
    for split, files in groups:
        for file in files:
            listed = _rows(file)
            columns = find_columns(file, listed.names, wanted)
            raw = _raw(file, split, listed, columns, tree.resolve())
            if columns.split is None:
                found.append(raw)
            else:
                where = f"{shown(file)}: column {columns.split!r}"
                found += by_column(
                    raw, columns.split, listed_values(where, listed.columns[columns.split], plain=listed.plain)
                )
    return found


def _raw(file: Path, split: str, listed: Listed, columns: Columns, tree: Path) -> Raw:
    def values(name: str) -> list[tuple[Path, Values]]:
        return [(file, listed_values(f"{shown(file)}: column {name!r}", listed.columns[name], plain=listed.plain))]

    images = _images(file, columns.image, listed.columns[columns.image], tree)
    return Raw(
        split=split,
        read=lambda i: images[i].read_bytes(),
        names=[str(path) for path in listed.columns[columns.image]],
        labels=values(columns.label),
        what=f"column {columns.label!r}",
        files=[file, *images],
        settings=(columns.image, columns.label, columns.domain or "", split),
        domains=None if columns.domain is None else values(columns.domain),
        notes=(columns.note,),
    )


def _images(file: Path, column: str, paths: Sequence[Any], tree: Path) -> list[Path]:
    """The files of the images. Raises RequestError for the first that is outside of the tree, or no file."""
    where = f"{shown(file)}: column {column!r}"
    found: list[Path] = []
    folders: dict[Path, bool] = {}  # whether they are in the tree; for many images resolving every path is slow
    for row, path in enumerate(paths):
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise RequestError(f"{where} has no path in row {row}, but {path!r}")
        image = file.parent / path.strip().replace("\\", os.sep)
        if image.parent not in folders:
            folders[image.parent] = image.parent.resolve().is_relative_to(tree)
        inside = folders[image.parent] and (not image.is_symlink() or image.resolve().is_relative_to(tree))
        if not inside:
            raise RequestError(f"{where} has the path {path!r} in row {row}, which is outside of {shown(tree)}")
        if not image.is_file():
            raise RequestError(f"{where} has the path {path!r} in row {row}, but {shown(image)} is no file")
        found.append(image)
    return found


def _rows(file: Path) -> Listed:
    """All rows. Raises RequestError if the file is damaged, or has none."""
    require_file(file)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{shown(file)} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    read: Callable[[Path, str], Listed] = _csv if file.suffix.lower() in (".csv", ".tsv", ".txt") else _json
    listed = read(file, content)
    if not listed.names or not listed.columns[listed.names[0]]:
        raise RequestError(f"{shown(file)} has no rows")
    return listed


def _csv(file: Path, content: str) -> Listed:
    delimiter = _delimiter(file, content.partition("\n")[0])
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                if rows and len(row) != len(rows[0]):
                    raise RequestError(
                        f"{shown(file)}: line {reader.line_num} has {len(row)} values, but the first has {len(rows[0])}"
                    )
                rows.append(row)
    except csv.Error as error:
        raise RequestError(f"{shown(file)}: line {reader.line_num} cannot be read: {error}") from error
    if not rows:
        raise RequestError(f"{shown(file)} has no rows")
    names = tuple(name.strip() for name in rows[0])
    if len(names) == 2 and _has_no_header(rows[0]):
        names = ("path", "label")
    else:
        rows = rows[1:]
    if len(set(names)) < len(names):
        raise RequestError(f"{shown(file)} has two columns of one name: {', '.join(names)}")
    return Listed(names, {name: [row[i] for row in rows] for i, name in enumerate(names)}, plain=True)


def _json(file: Path, content: str) -> Listed:
    """JSON lines, or one list of objects. A key that a line lacks has no value there."""
    rows: list[Any] = []
    number = 0
    try:
        if content.lstrip().startswith("["):
            rows = json.loads(content)
        else:
            for line in content.split("\n"):
                number += 1
                if line.strip():
                    rows.append(json.loads(line))
    except (ValueError, RecursionError) as error:
        where = f"line {number}" if number else "the list"
        raise RequestError(f"{shown(file)}: {where} is no JSON ({error})") from error
    odd = next((row for row in rows if not isinstance(row, dict)), None)
    if odd is not None:
        raise RequestError(f"{shown(file)} has {str(odd)[:40]!r}, but each line must be an object")
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Listed(names, {name: [row.get(name) for row in rows] for name in names}, plain=False)


def _delimiter(file: Path, line: str) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=line.count)


def _has_no_header(row: Sequence[str]) -> bool:
    """Whether the first row of two columns is a path and a label."""
    return Path(row[0].strip()).suffix.lower() in image_suffixes()
