"""Attributes that a plug-in's code reads: a field that no code reads cannot change a result."""

import ast
import builtins
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

WHOLE = {"vars", "asdict", "astuple", "__dict__"}  # they read every field


@dataclass(frozen=True)
class Reads:
    """Names of attributes that are read."""

    names: frozenset[str]
    everything: bool = False  # whether an object is given to code elsewhere, which may read any attribute

    def __contains__(self, name: str) -> bool:
        return self.everything or name in self.names


def of_class(cls: Any, root: Any) -> Reads:
    """What the files of a class and of its base classes read, except of `root` and the bases of `root`.

    A name counts as read wherever these files read an attribute with it. If a file's text is not available, everything
    counts as read.
    """
    found = [_of_one(each, root) for each in cls.__mro__ if each not in root.__mro__]
    return Reads(frozenset().union(*(each.names for each in found)), any(each.everything for each in found))


@cache
def _of_one(cls: Any, root: Any) -> Reads:
    """What a class reads, and the functions and other classes of its file, but not other subclasses of `root`."""
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return Reads(frozenset())
    try:
        module = sys.modules[cls.__module__]
        tree = ast.parse(inspect.getsource(module))
    except (KeyError, OSError, TypeError, SyntaxError):
        return Reads(frozenset(), everything=True)
    local = {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    names: set[str] = set()
    everything = False
    for part in tree.body:
        defined = getattr(module, part.name, None) if isinstance(part, ast.ClassDef) else None
        if isinstance(defined, type) and issubclass(defined, root) and defined is not cls:
            continue
        nodes = [*ast.walk(part)]
        read = {each.attr for each in nodes if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Load)}
        everything |= bool(WHOLE & (read | {each.id for each in nodes if isinstance(each, ast.Name)}))
        names |= read
        if defined is cls:
            names |= set(_by_text(part))
            everything |= _leaves(part, local)
    return Reads(frozenset(names), everything)


def _by_text(own: ast.AST) -> Iterator[str]:
    """Names that ``getattr`` may be given; if one is a variable, every text of the class."""
    for each in ast.walk(own):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "getattr":
            place = each.args[1] if len(each.args) > 1 else own
            texts = ast.walk(place if isinstance(place, ast.Constant) else own)
            yield from (text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str))


def _leaves(own: ast.AST, local: set[str]) -> bool:
    """Whether a class gives ``self`` to other code than that of its file (`local` names) and Python's own functions."""
    known = local | {*dir(builtins)}
    stays = {id(each.value) for each in ast.walk(own) if isinstance(each, ast.Attribute)}
    for each in ast.walk(own):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in known:
            stays |= {id(value) for value in (*each.args, *(given.value for given in each.keywords))}
    return any(isinstance(each, ast.Name) and each.id == "self" and id(each) not in stays for each in ast.walk(own))
