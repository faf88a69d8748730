"""The output of `clsim list`, `show` and `cache`. Plug-in files are read and never run."""

import contextlib
import json
import re
import shutil
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clsim import plugins
from clsim.backbones import registry
from clsim.data import entries
from clsim.errors import RequestError, unknown
from clsim.field_values import in_toml
from clsim.sealed import digest, unpacked

SECTIONS = ("scenarios", "strategies", "parts", "backbones")
CACHED = ("tables", "features")  # folders of the cache
NOTES = "finished"  # the folder of `clsim.known`


def names(section: str | None = None, plain: bool = False) -> str:
    """The plug-ins and backbones of one section or all sections: with summaries, or (plain) one name per line.

    Raises RequestError for an unknown section.
    """
    if section is not None and section not in SECTIONS:
        raise unknown("section", section, SECTIONS)
    blocks = []
    for each in SECTIONS if section is None else (section,):
        kind = next((kind for kind in plugins.KINDS if kind == each), None)
        known = list(registry.BUNDLED) if kind is None else plugins.names(kind)
        if plain:
            blocks += known
            continue
        summaries = registry.BUNDLED | registry.FAMILIES if kind is None else {n: _summary(kind, n) for n in known}
        blocks.append(f"{each}\n{columns([(f'  {name}', summary) for name, summary in summaries.items()])}\n")
    return "\n".join(blocks if plain else [*blocks, "`clsim show NAME` describes each in detail."])


def _summary(kind: plugins.Kind, name: str) -> str:
    """A plug-in's summary, or the reason why it cannot be read: a broken plug-in must not hide the others."""
    try:
        return plugins.describe(kind, name).summary
    except RequestError as error:
        return f"({error})"


def about(name: str) -> str:
    """The full description of a strategy, scenario, part or bundled backbone. Raises RequestError if there is none."""
    if name in registry.BUNDLED:
        return _backbone(name)
    kinds = plugins.kinds(name)
    if not kinds:
        known = [*registry.BUNDLED, *(each for kind in plugins.KINDS for each in plugins.names(kind, aliases=True))]
        raise unknown("strategy, scenario, part or backbone", name, known)
    return "\n\n".join(_plugin(plugins.describe(kind, name)) for kind in kinds)


def _backbone(name: str) -> str:
    """A backbone's description, and the notes stored with its weights."""
    text = f"{name} (backbone)\n\n{registry.describe(name)}"
    notes = Path(registry.__file__).parent / "weights" / f"{name}.json"
    return "\n".join([text, "", *_tree(json.loads(notes.read_text()))]) if notes.is_file() else text


def _tree(value: dict[str, Any], indent: str = "") -> list[str]:
    """Nested values, one per line."""
    lines = []
    for key, item in value.items():
        title = f"{indent}{key.replace('_', ' ')}:"
        if isinstance(item, dict):
            lines += [title, *_tree(item, f"{indent}  ")]
        else:
            lines.append(f"{title} {', '.join(map(str, item)) if isinstance(item, list) else item}")
    return lines


def _plugin(plugin: plugins.Description) -> str:
    """A plug-in's description from its file."""
    single = plugins.SINGULAR[plugin.kind]
    prefix = "scenario." if plugin.kind == "scenarios" else ""
    blocks = [f"{plugin.name} ({single})", plugin.doc, f"file: {plugin.path}", _spellings(plugin)]
    own = [field for field in plugin.fields if not field.inherited]
    shared = [field for field in plugin.fields if field.inherited]
    how = f"--with {plugin.alias_of or plugin.name},name=value" if plugin.kind == "parts" else f"{prefix}name=value"
    for title, group in ((f"fields ({how})", own), (f"fields of every {single}", shared)):
        if group:
            rows = [(f"  {prefix}{f.name}", _type(f.annotation), _default(f.default), f.meaning) for f in group]
            blocks.append(f"{title}\n{columns(rows)}")
    if plugin.presets:
        presets = [(f"  {name}", _values(values)) for name, values in plugin.presets.items()]
        blocks.append(f"presets (--preset NAME)\n{columns(presets)}")
    return "\n\n".join(filter(None, blocks))


def _spellings(plugin: plugins.Description) -> str:
    """Other ways to write a part or a strategy on the command line."""
    if plugin.same_as:
        return f"the same as: {plugin.same_as}"
    lines = []
    for name, fixed in {plugin.alias_of or plugin.name: {}, **plugin.aliases}.items():
        meaning = f" ({_values(fixed)})" if fixed else ""
        lines += [f"--with {':'.join((name, *map(str.upper, plugin.short)))}{meaning}"] if plugin.short else []
    return "\n".join(lines)


def _values(values: dict[str, Any]) -> str:
    """Values of fields as they are written on the command line."""
    return " ".join(f"{key}={_default(str(value))}" for key, value in values.items()) or "(the defaults)"


def _type(annotation: str) -> str:
    """``Literal['a', 'b'] | None`` -> ``a|b|none``."""
    text = re.sub(r"Literal\[([^]]*)]", lambda found: re.sub(r"[ '\"]", "", found[1]).replace(",", "|"), annotation)
    return text.replace(" | ", "|").replace("None", "none")


def _default(text: str | None) -> str:
    """A default as it is written on the command line."""
    if text is None:
        return "(required)"
    return text.lower() if text in ("None", "True", "False") else text.strip("'\"")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def cache(folder: Path) -> str:
    """The cache's folder and contents."""
    found = _entries(folder)
    rows = [(f"  {entry.relative_to(folder)}", size_text(size(entry))) for entry in found]
    total = f"{folder}: {size_text(sum(map(size, found)))} in {len(found)} entries"
    return f"{total}\n{columns(rows)}" if rows else f"{folder}: empty"


def clear_cache(folder: Path) -> str:
    """Empty the cache; returns a list of what was removed. Entries that another process is just making stay."""
    rows = []
    for note in (folder / NOTES).glob("*"):
        note.unlink(missing_ok=True)
    for entry in _entries(folder):
        text = size_text(size(entry))
        removed = entries.remove(entry)
        rows.append((f"  {entry.relative_to(folder)}", text if removed else "(another process is making it: kept)"))
    return f"removed from {folder}:\n{columns(rows)}" if rows else f"{folder}: already empty"


def tidy_cache(folder: Path) -> None:
    """Remove what killed processes left in the cache, also where a request opens no entry of it."""
    for kind in CACHED:
        with contextlib.suppress(OSError):  # there is none, or it is another user's
            entries.remove_leftovers(folder / kind)


def verify_cache(folder: Path) -> tuple[str, bool]:
    """Every table, bank and note, read in full and compared with its checksums, one line each; and if all are whole.

    A broken entry is set aside, so that the next run makes it again; a bank of which some blocks are broken stays,
    because these are computed again when they are read; a broken note about finished runs is removed.
    """
    from clsim.backbones import bank_files  # late: numpy

    lines, whole = [], True
    for entry in _entries(folder):
        if entries.TEMPORARY.search(entry.name) or entry.name.endswith(entries.BROKEN):
            continue
        is_table = entry.parent.name == "tables"
        found = (entries.faults if is_table else bank_files.faults)(entry, whole=True)
        whole = whole and not found
        if found:
            entries.usable(entry, partial(entries.faults, whole=True) if is_table else bank_files.faults)
        lines.append(f"{entry.relative_to(folder)}: {'BROKEN: ' + '; '.join(found) if found else 'whole'}")
    for note in sorted((folder / NOTES).glob("*.z")):
        try:
            asked = unpacked(note.read_bytes())["request"]
            if note.stem != digest(str(asked).encode()):
                raise ValueError("it is about another request")
            lines.append(f"{note.relative_to(folder)}: whole")
        except (OSError, ValueError, KeyError) as error:
            whole = False
            lines.append(f"{note.relative_to(folder)}: BROKEN: {error}; removed")
            shutil.rmtree(note) if note.is_dir() else note.unlink(missing_ok=True)
    return "\n".join(lines) or f"{folder}: empty", whole


def _entries(folder: Path) -> list[Path]:
    """Every table and feature bank; other files in the folder are ignored."""
    return [entry for kind in CACHED if (folder / kind).is_dir() for entry in sorted((folder / kind).iterdir())]


def size(path: Path) -> int:
    """Bytes of a file, or of the files below a folder; of those that are still there."""
    total = 0
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def size_text(count: float) -> str:
    """Bytes for people: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def differences(first: str, other: str) -> str:
    """In one line, the settings of a run that differ from those of the first run; both are texts in TOML."""
    before, now = map(_settings, (first, other))
    changed = (f"{name} = {in_toml(value)}" for name, value in now.items() if before.get(name) != value)
    return f"  other than the first: {', '.join(changed)}"


def _settings(text: str) -> dict[str, Any]:
    """Every value of a TOML file; those of a table as ``strategy.lr``."""
    tree = tomllib.loads(text)
    tables = {name: each for name, each in tree.items() if isinstance(each, dict)}
    plain = {name: value for name, value in tree.items() if name not in tables}
    return plain | {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
