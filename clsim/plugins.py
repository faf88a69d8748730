"""Finds strategies and scenarios: in the built-in folders, by entry points, or as path/to/file.py:Class.

`describe` reads a plug-in's file and never runs it; only `load` imports.
"""

import ast
import hashlib
import importlib.util
import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import clsim
from clsim.errors import RequestError, unknown
from clsim.written import Class, Field, body, lineage, module_file, read

Kind = Literal["strategies", "scenarios"]
KINDS: tuple[Kind, ...] = ("strategies", "scenarios")
SINGULAR = {"strategies": "strategy", "scenarios": "scenario"}
# kind -> the class that its plug-ins have among their bases, the module that holds it
BASES = {"strategies": ("Strategy", "clsim.strategy"), "scenarios": ("Scenario", "clsim.data.streams")}


@dataclass(frozen=True)
class Description:
    """What a plug-in's file says about it."""

    name: str
    kind: Kind
    path: Path
    class_name: str
    summary: str  # first line of the docstring
    doc: str
    fields: tuple[Field, ...]  # in the order of the dataclass: inherited ones first
    presets: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a plug-in is found."""

    name: str
    path: Path
    class_name: str | None = None  # None: the only one in the file
    module: str | None = None  # what to import; None: the file itself


def names(kind: Kind) -> list[str]:
    """Every plug-in that can be asked for by a plain name, sorted."""
    return sorted({place.name for place in _places(kind)})


def kinds(name: str) -> list[Kind]:
    """The kinds of plug-in that are called `name`; a user's file is of the kind that its class's bases tell."""
    if not is_file(name):
        return [kind for kind in KINDS if name in names(kind)]
    place = _find("strategies", name)
    asked = read(place.path).classes.get(place.class_name or "")
    # neither: `describe` will say what a strategy needs
    return [kind for kind in KINDS if asked is not None and lineage(asked, BASES[kind][0])] or ["strategies"]


def describe(kind: Kind, name: str) -> Description:
    """A plug-in's description, from its text alone. Raises RequestError if it is unknown or cannot be read."""
    place = _find(kind, name)
    own = _plugin_class(kind, place)
    merged, constants = _base(kind)
    for written in reversed(lineage(own, BASES[kind][0])):
        declared, assigned = body(written)
        constants = constants | assigned
        for field in declared:  # one that stands above keeps its place, and its meaning where none is given
            above = merged.get(field.name)
            meaning = field.meaning or (above.meaning if above else "")
            merged = merged | {field.name: replace(field, meaning=meaning)}
    try:
        presets = ast.literal_eval(constants["presets"]) if "presets" in constants else {}
    except ValueError as error:
        raise RequestError(f"{place.path}: presets of {own.node.name} must be a literal") from error
    doc = ast.get_docstring(own.node) or ast.get_docstring(own.file.tree) or ""
    every = tuple(merged.values())
    return Description(name, kind, place.path, own.node.name, doc.partition("\n")[0], doc, every, presets)


def load(kind: Kind, name: str) -> type[Any]:
    """A plug-in's class, imported. Raises RequestError if it is unknown or its file cannot be imported."""
    place = _find(kind, name)
    described = describe(kind, name)
    try:
        module = import_module(place.module) if place.module else _import_file(place.path)
    except Exception as error:  # whatever a plug-in's author got wrong: they need its name, its file and the reason
        raise RequestError(f"cannot import {SINGULAR[kind]} {name!r} ({place.path}): {_reason(error)}") from error
    found: type[Any] = getattr(module, described.class_name)
    configured = {field.name for field in fields(found)}
    for field in described.fields:
        if field.name not in configured:
            raise RequestError(f"{described.class_name} ({place.path}) declares fields: put @dataclass above the class")
    return found


def label(name: str) -> str:
    """The short name of a plug-in, for prefixes and directories: ``path/to/file.py:Class`` -> ``class``."""
    return name.rpartition(":")[2].lower() if is_file(name) else name


def is_file(name: str) -> bool:
    """Whether a name stands for a file of the user's rather than for a plug-in that is installed."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def identity(name: str) -> str:
    """What tells a plug-in from others in a configuration's hash: its name; for a user's file its class and text."""
    if not is_file(name):
        return name
    path, _, class_name = name.rpartition(":")
    return f"{class_name}@{_digest(Path(path).expanduser())}"


# finding


def _find(kind: Kind, name: str) -> Place:
    """Where the plug-in called `name` is."""
    if is_file(name):
        path, _, class_name = name.rpartition(":")
        if not path:
            raise RequestError(f"{name} needs the name of a class: {name}:CLASS")
        return Place(name, Path(path).expanduser(), class_name)
    places = _places(kind)
    found = [place for place in places if place.name == name]
    if not found:
        raise unknown(SINGULAR[kind], name, {place.name for place in places})
    if len(found) > 1:
        both = " and ".join(str(place.path) for place in found)
        raise RequestError(f"more than one {SINGULAR[kind]} is called {name!r}: {both}; ask for one as FILE.py:CLASS")
    return found[0]


def _places(kind: Kind) -> list[Place]:
    """Everything in the built-in folders, and what installed packages announce by entry points."""
    found = []
    for folder in clsim.__path__:  # two of them in a checkout, where the plug-in folders lie beside the package
        for file in sorted((Path(folder) / kind).glob("[!_]*.py")):
            found.append(Place(file.stem, file, module=f"clsim.{kind}.{file.stem}"))
    for entry in entry_points(group=f"clsim.{kind}"):
        path = module_file(entry.module) or Path(*entry.module.split(".")).with_suffix(".py")
        found.append(Place(entry.name, path, entry.attr or None, entry.module))
    return found


# reading


def _plugin_class(kind: Kind, place: Place) -> Class:
    """The class asked for; where none is named, the only public one that stands below Strategy (or Scenario)."""
    base = BASES[kind][0]
    classes = read(place.path).classes
    below = [name for name, written in classes.items() if lineage(written, base)]
    public = [name for name in below if not name.startswith("_")]
    if place.class_name is None:
        if len(public) != 1:
            what = (
                f"{len(public)} public classes below {base} ({', '.join(public)})"
                if public
                else f"no class below {base}"
            )
            raise RequestError(f"{place.path} has {what}; a {SINGULAR[kind]}'s file has one")
        return classes[public[0]]
    if place.class_name not in classes:
        raise unknown(f"class in {place.path} called", place.class_name, public)
    if place.class_name not in below:
        raise RequestError(f"{place.class_name} in {place.path} is no {SINGULAR[kind]}: {base} is not among its bases")
    return classes[place.class_name]


@cache
def _base(kind: Kind) -> tuple[dict[str, Field], dict[str, ast.expr]]:
    """Fields of Strategy or Scenario by their names, and its class variables, read from clsim's own file."""
    name, module = BASES[kind]
    file = read(Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py"))
    declared, constants = body(file.classes[name])
    return {field.name: replace(field, inherited=True) for field in declared}, constants


# importing


def _import_file(path: Path) -> ModuleType:
    """A user's file as a module; the same module if its text has been imported before."""
    name = f"clsim_file_{_digest(path)}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while it is being made
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _digest(path: Path) -> str:
    """12 hex digits of a file's text."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
