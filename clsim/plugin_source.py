"""The source of Python files: their classes, base classes and fields. Nothing is run."""

import ast
import builtins
import io
import math
import sys
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clsim.errors import RequestError


@dataclass(frozen=True)
class Field:
    """A field of a plug-in's dataclass, as written in the source."""

    name: str
    annotation: str
    default: str | None  # source text; None if there is no default
    meaning: str  # the comment on its line
    inherited: bool = False  # from Strategy or Scenario, unchanged


@dataclass(frozen=True)
class File:
    """A file."""

    path: Path
    tree: ast.Module
    lines: Sequence[str]

    @property
    def classes(self) -> "dict[str, Class]":
        """Its classes by name."""
        return {node.name: Class(self, node) for node in self.tree.body if isinstance(node, ast.ClassDef)}


@dataclass(frozen=True)
class Class:
    """A class in a file."""

    file: File
    node: ast.ClassDef


def read(path: Path) -> File:
    """A file's syntax tree and its lines. Raises RequestError if it is not a Python file."""
    try:
        text = path.read_text(encoding="utf-8")
        return File(path, _parsed(text), text.splitlines())
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except SyntaxError as error:
        raise RequestError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # not UTF-8, or null bytes
        raise RequestError(f"{path} is not a Python file: {error}") from error


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.Module:
    """A cached syntax tree; do not change it. Without the cache, base classes would be parsed for each subclass."""
    return ast.parse(text)


def lineage(lowest: Class, top: str) -> list[Class]:
    """The class and its bases up to `top`, which is left out; empty if `top` is not one of its bases."""
    if top in map(_last_name, lowest.node.bases):
        return [lowest]
    for base in lowest.node.bases:
        above = _class_named(ast.unparse(base), lowest.file, lowest.node.lineno)
        if above is not None and (line := lineage(above, top)):
            return [lowest, *line]
    return []


def _class_named(name: str, file: File, line: float = math.inf) -> Class | None:
    """The class that a (dotted) name refers to above a line of a file; None if the source does not show it."""
    here = file.classes.get(name)
    if here is not None and here.node.lineno < line:
        return here
    source = _source(name, file)
    return _class_named(source[1], source[0]) if source is not None else None


def _source(name: str, file: File) -> tuple[File, str] | None:
    """The file that a (dotted) name is imported from, and its name there; None if it is not imported."""
    first, dot, rest = name.partition(".")
    bound = imported(file).get(first)
    if bound is None:
        return None
    module, _, inner = f"{bound}{dot}{rest}".rpartition(".")
    path = _in_package(file.path, module) if module.startswith(".") else module_file(module)
    return (read(path), inner) if path is not None and path.suffix == ".py" else None


def imported(file: File) -> dict[str, str]:
    """The names that import statements at a file's top level bind: name -> dotted name of the imported object."""
    found: dict[str, str] = {}
    for node in file.tree.body:
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (f"{node.module}." if node.module else "")
            found |= {each.asname or each.name: f"{module}{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            for each in node.names:  # `import a.b` binds a, `import a.b as c` binds c to a.b
                bound = each.asname or each.name.partition(".")[0]
                found[bound] = each.name if each.asname else bound
    return found


def _in_package(path: Path, module: str) -> Path | None:
    """The file of a module named from a file of its package: ``.base``, ``..parts.base``."""
    name = module.lstrip(".")
    above = path.parents[len(module) - len(name) - 1].joinpath(*name.split("."))
    return next((file for file in (above.with_suffix(".py"), above / "__init__.py") if name and file.is_file()), None)


def is_dataclass(written: Class) -> bool:
    """Whether a class is decorated with ``@dataclass``."""
    decorators = (each.func if isinstance(each, ast.Call) else each for each in written.node.decorator_list)
    return "dataclass" in map(_last_name, decorators)


def _last_name(node: ast.expr) -> str:
    """``clsim.Strategy`` -> ``Strategy``."""
    return ast.unparse(node).rpartition(".")[2]


def body(written: Class) -> tuple[list[Field], dict[str, ast.expr]]:
    """The dataclass fields that a class body declares, and its class variables."""
    declared: list[Field] = []
    constants: dict[str, ast.expr] = {}
    for item in written.node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            constants[item.targets[0].id] = item.value
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        quoted = isinstance(item.annotation, ast.Constant) and isinstance(item.annotation.value, str)
        annotation = str(ast.literal_eval(item.annotation)) if quoted else ast.unparse(item.annotation)
        annotation = " | ".join(_choices(member, written.file) for member in annotation.split(" | "))
        if annotation.removeprefix("typing.").startswith("ClassVar"):
            if item.value is not None:
                constants[item.target.id] = item.value
            continue
        options = _field_options(item.value)
        if options.get("init") != "False":
            declared.append(
                Field(item.target.id, annotation, options.get("default"), _comment(item, written.file.lines))
            )
    return declared, constants


def _choices(name: str, file: File) -> str:
    """A type's name, or the Literal of that name: ``Mask`` -> ``Literal['current', 'seen', 'all']``."""
    if not name.replace(".", "").isidentifier() or hasattr(builtins, name):
        return name
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value = ast.unparse(node.value).removeprefix("typing.")
            return value if value.startswith("Literal[") else name
    source = _source(name, file)
    meaning = name if source is None else _choices(source[1], source[0])
    return meaning if meaning.startswith("Literal[") else name


def _field_options(value: ast.expr | None) -> dict[str, str]:
    """Text of the default and the other keywords of ``field(...)``, or of a plain default."""
    if value is None:
        return {}
    if not (isinstance(value, ast.Call) and _last_name(value.func) == "field"):
        return {"default": ast.unparse(value)}
    options = {word.arg: ast.unparse(word.value) for word in value.keywords if word.arg is not None}
    if "default_factory" in options:
        options["default"] = f"{options['default_factory']}()".removeprefix("lambda: ")
    return options


def _comment(item: ast.AnnAssign, lines: Sequence[str]) -> str:
    """The comments after a statement, and inside it if it has several lines."""
    assert item.end_lineno is not None
    text = "".join(f"{line.strip()}\n" for line in lines[item.lineno - 1 : item.end_lineno])
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT)


def module_file(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages around it; None if there is none."""
    search: Sequence[str] | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if name in sys.modules and depth < len(parts):  # in a checkout clsim has two folders
            search = getattr(sys.modules[name], "__path__", [])
            continue
        specs = (finder.find_spec(name, search) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or (spec.submodule_search_locations is None and depth < len(parts)):
            return None
        search = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
