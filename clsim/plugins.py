"""Finds strategies, scenarios and parts: in the built-in folders, by entry points, or as path/to/file.py:Class.

`describe` reads a plug-in's file and never runs it; only `load` imports.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import clsim
from clsim import provenance
from clsim.errors import RequestError, unknown
from clsim.plugin_source import Class, Field, body, imported, is_dataclass, lineage, module_file, read

Kind = Literal["strategies", "scenarios", "parts"]
KINDS: tuple[Kind, ...] = ("strategies", "scenarios", "parts")
SINGULAR = {"strategies": "strategy", "scenarios": "scenario", "parts": "part"}
# kind -> base class of its plug-ins, and its module
BASES = {
    "strategies": ("Strategy", "clsim.strategy"),
    "scenarios": ("Scenario", "clsim.data.streams"),
    "parts": ("Part", "clsim.events"),
}
ROOTS = {module for _, module in BASES.values()}
# a file with such a class may contain a part; most files of that folder contain building blocks only
MAY_BE_PART = re.compile(r"^@(dataclasses\.)?dataclass\b.*\n(@.*\n)*class [A-Za-z]\w*\(", re.MULTILINE)


@dataclass(frozen=True)
class Description:
    """A plug-in's description, read from its file."""

    name: str
    kind: Kind
    path: Path
    class_name: str
    summary: str  # first line of the docstring
    doc: str  # the whole docstring
    fields: tuple[Field, ...]  # in the dataclass's order: inherited fields first
    presets: dict[str, dict[str, Any]]
    short: tuple[str, ...] = ()  # of a part: fields of the short form NAME:VALUE:VALUE
    aliases: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a part: other name -> fields that it sets
    same_as: str = ""  # of a strategy: the same method written with a part, "STRATEGY --with PART,FIELD=OWN_FIELD"
    alias_of: str | None = None  # the part's own name, if the request used another name


@dataclass(frozen=True)
class Place:
    """Where a plug-in is found."""

    name: str
    path: Path
    class_name: str | None = None  # None: the only one in the file
    module: str | None = None  # module to import; None: import the file itself
    alias_of: str | None = None  # the part's own name


def names(kind: Kind, aliases: bool = False) -> list[str]:
    """The plain names of all plug-ins, sorted; with `aliases` also their other names."""
    return sorted({place.name for place in _places(kind) if aliases or place.alias_of is None})


def kinds(name: str) -> list[Kind]:
    """The kinds that have a plug-in called `name`; a user's class has the kind of its bases."""
    if not is_file(name):
        return [kind for kind in KINDS if name in names(kind, aliases=True)]
    place = _find("strategies", name)
    asked = read(place.path).classes.get(place.class_name or "")
    found: list[Kind] = [kind for kind in KINDS if asked is not None and _is_a(kind, asked)]
    return found or ["strategies"]  # none: `describe` will raise the error that explains it


def describe(kind: Kind, name: str) -> Description:
    """A plug-in's description, from its source only. Raises RequestError if it is unknown or cannot be read."""
    place = _find(kind, name)
    own = _plugin_class(kind, place)
    merged: dict[str, Field | None]
    merged, constants = dict(_base(kind)[0]), _base(kind)[1]
    for written in reversed(lineage(own, BASES[kind][0])):
        declared, assigned = body(written)
        constants = constants | assigned
        for constant in assigned:  # a field that redefines a class variable takes its position, as in dataclasses
            merged.setdefault(constant, None)
        for each in declared:  # a redefined field keeps its position, and its old help text if it has no new one
            above = merged.get(each.name)
            meaning = each.meaning or (above.meaning if above else "")
            merged[each.name] = replace(each, meaning=meaning)
    doc = ast.get_docstring(own.node) or ast.get_docstring(own.file.tree) or ""
    names = body(own)[1]  # other names are not inherited: they belong to the base class
    return Description(
        name=name,
        kind=kind,
        path=place.path,
        class_name=own.node.name,
        summary=doc.partition("\n")[0],
        doc=doc,
        fields=tuple(each for each in merged.values() if each is not None),
        presets=_presets(constants, own),
        short=tuple(_literal(constants, "short", own, ())),
        aliases=_literal(names, "aliases", own, {}),
        same_as=_literal(names, "same_as", own, ""),
        alias_of=place.alias_of,
    )


def _presets(constants: dict[str, ast.expr], owner: Class) -> dict[str, dict[str, Any]]:
    """The presets of a class. Raises RequestError unless they are a dict of dicts."""
    found = _literal(constants, "presets", owner, {})
    if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
        example = '{"NAME": {"FIELD": VALUE}}'
        raise RequestError(f"{owner.file.path}: presets of {owner.node.name} must be like {example}, not {found!r}")
    return found


def _literal(constants: dict[str, ast.expr], name: str, owner: Class, default: Any) -> Any:
    """The value of a class variable. Raises RequestError if it cannot be read without running the file."""
    try:
        return ast.literal_eval(constants[name]) if name in constants else default
    except ValueError as error:
        raise RequestError(f"{owner.file.path}: {name} of {owner.node.name} must be a literal") from error


def renamed() -> Iterator[Description]:
    """The strategies that declare `same_as`: each is the same method as another strategy with a part."""
    for place in _places("strategies"):
        if "same_as" in provenance.source(place.path):
            described = describe("strategies", place.name)
            if described.same_as:
                yield described


def load(kind: Kind, name: str) -> type[Any]:
    """A plug-in's class, imported. Raises RequestError if it is unknown or its file cannot be imported."""
    place = _find(kind, name)
    described = describe(kind, name)
    try:
        module = import_module(place.module) if place.module else _import_file(place.path)
    except (
        Exception,
        SystemExit,
    ) as error:  # any mistake in a plug-in: its author needs the name, the file and the reason
        raise RequestError(f"cannot import {SINGULAR[kind]} {name!r} ({place.path}): {_reason(error)}") from error
    found: type[Any] = getattr(module, described.class_name)
    for file, text in _texts(found).items():
        if text != provenance.source(file):
            raise RequestError(f"{file} was changed after it was imported: start Python again to use the new text")
    configured = {each.name for each in fields(found)} if hasattr(found, "__dataclass_fields__") else set()
    for each in described.fields:
        if each.name not in configured:
            raise RequestError(f"{described.class_name} ({place.path}) declares fields: put @dataclass above the class")
    return found


def short_name(name: str) -> str:
    """The short name of a plug-in, for prefixes and directories: ``path/to/file.py:Class`` -> ``class``."""
    return name.rpartition(":")[2].lower() if is_file(name) else name


def is_file(name: str) -> bool:
    """Whether a name refers to a user's file and not to an installed plug-in."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def path_in(name: str) -> str | None:
    """The path in the name of a user's plug-in, with or without fields after it; None for an installed one."""
    found = re.match(r"(.*\.py):\w*", name)
    return found[1] if found else None


def identity(name: str, cls: type[Any]) -> str:
    """A plug-in's contribution to a run's hash: its short name and a digest of its class's and base classes' files.

    The files that a user's own file imports from its folder count, too. Left out are clsim's own root classes (they are
    in the digest of clsim's code) and classes of Python and torch.
    """
    return f"{name.rpartition(':')[2]}@{provenance.digest(_texts(cls).values())}"


def _texts(cls: type[Any]) -> dict[Path, str]:
    """The files of a class, of its base classes and of what these import from their folder, as they were imported."""
    foreign = {*sys.stdlib_module_names, "torch", "numpy"}
    modules = dict.fromkeys(base.__module__ for base in cls.__mro__ if base.__module__ not in ROOTS)
    waiting = [name for name in modules if name.partition(".")[0] not in foreign]
    found: dict[Path, str] = {}
    for name in waiting:  # grows while it is read
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or Path(file) in found:
            continue
        found[Path(file)] = _imported_text(name, Path(file))
        if name.partition(".")[0] != "clsim":
            waiting += _neighbours(Path(file))
    return found


def _neighbours(path: Path) -> list[str]:
    """The modules that a file imports at its top level from its own folder, or from folders in it."""
    found = []
    for dotted in imported(read(path)).values():
        names = [dotted.rsplit(".", cut)[0] for cut in range(dotted.count(".") + 1)]
        name = next((each for each in names if each in sys.modules), "")
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and path.parent in Path(file).parents:
            inside = Path(file).relative_to(path.parent).parts
            if not {"site-packages", "clsim"} & {*inside, name.partition(".")[0]}:
                found.append(name)
    return found


@cache
def _imported_text(module: str, file: Path) -> str:
    """The text of a module's file when it was first asked for, soon after the import.

    A file may be edited while its process goes on (a sweep, a notebook). The class is still the one imported before, so
    a hash of the new text would name a run that the new text did not make.
    """
    return provenance.source(file)


# finding


def _find(kind: Kind, name: str) -> Place:
    """The location of the plug-in called `name`."""
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
    """All plug-ins in the built-in folders and in the entry points of installed packages."""
    found = []
    for folder in clsim.__path__:  # two in a checkout, where the plug-in folders are next to the package
        for file in sorted((Path(folder) / kind).glob("[!_]*.py")):
            if kind != "parts" or _holds_part(file):
                found.append(Place(file.stem, file, module=f"clsim.{kind}.{file.stem}"))
    for entry in _installed(kind, tuple(sys.path)):
        path = module_file(entry.module) or Path(*entry.module.split(".")).with_suffix(".py")
        found.append(Place(entry.name, path, entry.attr or None, entry.module))
    return [*found, *(alias for place in found if kind == "parts" for alias in _aliases(place))]


@cache
def _installed(kind: Kind, paths: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of installed packages. All packages of all `paths` are read, so they are read only once."""
    return tuple(entry_points(group=f"clsim.{kind}"))


def _holds_part(path: Path) -> bool:
    """Whether a file has one public dataclass that inherits from Part."""
    if not MAY_BE_PART.search(provenance.source(path)):
        return False
    return len(_public("parts", read(path).classes.values())) == 1


def _aliases(place: Place) -> list[Place]:
    """The part under its other names; none if its file cannot be read (`describe` reports that)."""
    try:
        if "aliases" not in provenance.source(place.path):
            return []
        own = _plugin_class("parts", place)
        found = _literal(body(own)[1], "aliases", own, {})
    except RequestError:
        return []
    return [replace(place, name=name, alias_of=place.name) for name in found]


# reading


def _is_a(kind: Kind, written: Class) -> bool:
    """Whether a class is a plug-in of this kind. A strategy also inherits from Part, but it is not a part."""
    is_strategy = bool(lineage(written, BASES["strategies"][0]))
    return is_strategy if kind == "strategies" else not is_strategy and bool(lineage(written, BASES[kind][0]))


def _public(kind: Kind, classes: Iterable[Class]) -> list[Class]:
    """The public plug-ins of a file. Only dataclasses count as parts; other classes are their building blocks."""
    found = [each for each in classes if not each.node.name.startswith("_") and _is_a(kind, each)]
    return found if kind != "parts" else [each for each in found if is_dataclass(each)]


def _plugin_class(kind: Kind, place: Place) -> Class:
    """The class with the given name; without a name, the only public subclass of Strategy, Scenario or Part."""
    base = BASES[kind][0]
    classes = read(place.path).classes
    public = _public(kind, classes.values())
    known = ", ".join(each.node.name for each in public)
    if place.class_name is None:
        if len(public) != 1:
            what = f"{len(public)} public classes that inherit from {base} ({known})" if public else f"no {base}"
            raise RequestError(f"{place.path} has {what}; the file of a {SINGULAR[kind]} must have exactly one")
        return public[0]
    asked = classes.get(place.class_name)
    if asked is None:
        raise unknown(f"class in {place.path} called", place.class_name, known.split(", "))
    if not _is_a(kind, asked):
        strategy = kind == "parts" and lineage(asked, BASES["strategies"][0])
        why = "it is a strategy" if strategy else f"{base} is not among its bases"
        raise RequestError(f"{place.class_name} in {place.path} is no {SINGULAR[kind]}: {why}")
    return asked


@cache
def _base(kind: Kind) -> tuple[dict[str, Field], dict[str, ast.expr]]:
    """Fields of Strategy, Scenario or Part by name, and its class variables, read from clsim's own file."""
    name, module = BASES[kind]
    file = read(Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py"))
    declared, constants = body(file.classes[name])
    return {each.name: replace(each, inherited=True) for each in declared}, constants


# importing


def _import_file(path: Path) -> ModuleType:
    """A user's file as a module; the same module again if the same text was imported before."""
    name = f"clsim_file_{provenance.digest([str(path.resolve()), provenance.source(path)])}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # a dataclass looks up its module while the class is created
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
