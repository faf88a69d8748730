"""Labels as files have them, numbers or text, with declared names or without; and what cannot be a label."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clsim.data.sources import twins
from clsim.errors import RequestError

Values = NDArray[Any]  # (n,) int64, or text as objects
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.0)?")  # 007 is text; pandas writes 7.0 where other rows have no value


class Declared(NamedTuple):
    """Class names in the files' metadata; None if there are none."""

    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


UNDECLARED = Declared(None)


class Labels(NamedTuple):
    """Labels as ids."""

    ids: NDArray[np.int64]
    names: tuple[str, ...]
    unusual: tuple[str, ...] = ()  # names that are neither declared, nor the numbers from 0; for the fingerprint
    notes: tuple[str, ...] = ()


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, dictionary-encoded or not."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def column_values(file: Path, name: str, column: Any) -> Values:
    """A column of whole numbers or text. Raises RequestError for other types, and for rows without a value."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], type=kind)
    where = f"{file}: column {name!r}"
    if column.null_count:
        raise _without_value(where, np.flatnonzero(column.is_null().to_numpy()).tolist(), len(column))
    if pa.types.is_integer(kind):
        return array_values(where, column.to_numpy())
    if not is_text(kind):
        raise RequestError(f"{where} has labels of type {kind}; labels are whole numbers or text")
    try:
        return as_text(column.to_pylist())
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} has text that is not UTF-8") from error


def as_text(values: Sequence[str]) -> Values:
    """Text as an array, in NFC."""
    return np.array([unicodedata.normalize("NFC", value) for value in values], dtype=object)


def array_values(where: str, array: NDArray[Any]) -> Values:
    """An array of whole numbers or text, (n,) or (n,1). Raises RequestError, which begins with `where`, for others."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise RequestError(f"{where} has the shape {array.shape}; labels are one number or one text for each image")
    if array.dtype.kind in "US":
        return listed_values(where, array.tolist())
    if array.dtype.kind not in "iu":
        raise RequestError(f"{where} has labels of type {array.dtype}; labels are whole numbers or text")
    if len(array) and int(array.max()) > np.iinfo(np.int64).max:
        raise RequestError(f"{where} has a number that is too large for a label: {array.max()}")
    return np.asarray(array.astype(np.int64))


def listed_values(where: str, values: Sequence[Any], plain: bool = False) -> Values:
    """A list of whole numbers, or of text. Raises RequestError, which begins with `where`, for others.

    `plain`: the file has only text, so that numbers are text, too; they become numbers if all values are such.
    """
    values = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in values]
    missing = [i for i, value in enumerate(values) if value is None or (isinstance(value, str) and not value.strip())]
    if missing:
        raise _without_value(where, missing, len(values))
    if plain and all(WHOLE.fullmatch(value.strip()) for value in values):
        values = [int(value.strip().removesuffix(".0")) for value in values]
    kinds = {type(value) for value in values}
    if kinds == {int}:
        large = [value for value in values if not -(2**63) <= value < 2**63]
        if large:
            raise RequestError(f"{where} has a number that is too large for a label: {str(large[0])[:40]}")
        return np.array(values, dtype=np.int64)
    if kinds - {str}:
        odd = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise RequestError(f"{where} has labels of type {odd}; labels are whole numbers or text, all of one kind")
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where} has text that is not UTF-8: {error.object!r}") from error
    return as_text([value.strip() if plain else value for value in values])


def _without_value(where: str, rows: Sequence[int], count: int) -> RequestError:
    return RequestError(f"{where} has no value in {len(rows)} of {count} rows, first in row {rows[0]}")


def declared_names(schemas: Sequence[tuple[Path, Any]], column: str) -> Declared:
    """Names from the `huggingface` metadata of the files (info.features.<column>.names).

    Metadata that is not JSON is noted. Raises RequestError if the names are no list of text, or differ between files.
    """
    notes: list[str] = []
    found: dict[tuple[str, ...], Path] = {}
    for file, schema in schemas:
        try:
            about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        except (ValueError, RecursionError):
            notes.append(f"{file}: the huggingface metadata is not JSON, so it declares no class names")
            continue
        for key in ("info", "features", column, "names"):
            about = about.get(key) if isinstance(about, dict) else None
        if not about:
            continue
        if isinstance(about, dict) and set(about) == {str(i) for i in range(len(about))}:
            about = [about[str(i)] for i in range(len(about))]  # {"0": "cat", "1": "dog"}
        if not isinstance(about, list) or not all(isinstance(name, str) for name in about):
            raise RequestError(
                f"{file}: the huggingface metadata of column {column!r} has names that are no list of text"
            )
        found.setdefault(tuple(about), file)
    return Declared(_agreed(list(found.items()), f"column {column!r}"), tuple(notes))


def agreed(parts: Sequence[tuple[Path, Declared]], what: str) -> Declared:
    """The names that several splits declare. Raises RequestError if two splits declare other names."""
    found = {each.names: file for file, each in reversed(parts) if each.names is not None}
    notes = dict.fromkeys(note for _, each in parts for note in each.notes)
    return Declared(_agreed(list(found.items())[::-1], what), tuple(notes))


def _agreed(found: Sequence[tuple[tuple[str, ...], Path]], what: str) -> tuple[str, ...] | None:
    if len(found) > 1:
        (first, a), (second, b) = found[:2]
        odd = next((f"{x!r} and {y!r}" for x, y in zip(first, second, strict=False) if x != y), "their number")
        raise RequestError(f"{b}: {what} declares other class names than {a.name}; they differ in {odd}")
    return found[0][0] if found else None


def categories(
    parts: Sequence[tuple[Path, Values]], what: str, declared: Declared, other: Sequence[Values] | None
) -> Labels:
    """The labels of several files -> ids (N,) and names. `what` is their name in messages, e.g. "column 'label'".

    Undeclared names are the text, sorted, or the numbers that occur here or in `other`, the labels of another split. If
    `other` is None, numbers from 0 with few gaps have names without gaps. Raises RequestError for labels that do not
    fit the declared names.
    """
    texts = [file for file, values in parts if values.dtype == object]
    numbers = [file for file, values in parts if values.dtype != object]
    if texts and numbers:
        raise RequestError(f"{texts[0]}: {what} has text, but whole numbers in {numbers[0].name}")
    values = np.concatenate([values for _, values in parts])
    more = [each for each in other or () if (each.dtype == object) == bool(texts)]
    if texts:
        return _text(parts, what, values, declared)
    where = f"{parts[0][0]}: {what}"
    lowest, highest = int(values.min()), int(values.max())
    if declared.names is not None:
        names = declared.names
        if lowest < 0 or highest >= len(names):
            raise RequestError(f"{where}: labels run from {lowest} to {highest}, but {len(names)} names are declared")
        return Labels(values, names, (), (*declared.notes, *_alike(names)))
    if lowest < 0:
        raise RequestError(f"{where} has the label {lowest}; labels below 0 usually mean images without labels")
    seen = np.unique(values)
    if other is None and lowest == 0 and highest < 2 * len(seen):
        return Labels(values, tuple(str(i) for i in range(highest + 1)), (), declared.notes)
    seen = np.unique(np.concatenate([seen, *(each[each >= 0] for each in more)]))
    names = tuple(map(str, seen.tolist()))
    usual = int(seen[-1]) == len(seen) - 1
    notes = () if usual else (f"the {len(seen)} classes are the numbers that occur in {what}",)
    return Labels(np.searchsorted(seen, values), names, () if usual else names, (*declared.notes, *notes))


def _text(parts: Sequence[tuple[Path, Values]], what: str, values: Values, declared: Declared) -> Labels:
    """`categories` of text."""
    names = declared.names or tuple(sorted(set(values.tolist())))
    ids = {unicodedata.normalize("NFC", name): i for i, name in enumerate(names)}
    for file, part in parts:
        strange = sorted(set(part.tolist()) - set(ids))
        if strange:
            raise RequestError(
                f"{file}: {what}: label {strange[0]!r} is not among the declared names: {', '.join(names)}"
            )
    found = np.array([ids[value] for value in values.tolist()], dtype=np.int64)
    return Labels(found, names, (), (*declared.notes, *_alike(names)))


def _alike(names: Sequence[str]) -> list[str]:
    """A note for each pair of class names that read the same."""
    return [f"the class names {a!r} and {b!r} differ only by case, or by '_' and a blank" for a, b in twins(names)]
