"""Parts as written after `--with`: ``er:500``, ``der,alpha=0.5,size=500``, ``my.py:Mine,weight=2``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clsim import plugins
from clsim.errors import RequestError
from clsim.field_values import check, defaults, make, resolved, split_field

COMMA = re.compile(r",(?![^\[]*\])")  # outside of brackets (lists)


@dataclass(frozen=True)
class NamedPart:
    """A part of the request, with the values of all fields."""

    name: str  # of the plug-in, also if an alias was written
    text: str  # its normal form; it selects the same part again
    fields: dict[str, Any]  # every field
    made: Any


def split(value: Any) -> list[str]:
    """``er:500,der,alpha=1``, or a list of such texts -> one text per part. A field belongs to the part before it."""
    found: list[str] = []
    for item in map(str.strip, COMMA.split(",".join(check(value, tuple[str, ...], "with")))):
        if not re.match(r"\w+=", item):
            found += [item] if item else []
        elif found:
            found[-1] += f",{item}"
        else:
            raise RequestError(f"--with {item}: name the part before its fields: PART,{item}")
    return found


def named_part(text: str) -> NamedPart:
    """The part for one text of `split`. Raises RequestError if there is no such part, or if its values do not fit."""
    head, *pairs = COMMA.split(text)
    user_file = re.match(r".*\.py:\w*", head)  # its name contains a colon
    name = user_file[0] if user_file else head.partition(":")[0]
    described = plugins.describe("parts", name)
    values = dict(described.aliases[name]) if described.alias_of else {}
    for key, value in [*_short(head, name, described), *map(split_field, pairs)]:
        if key in values:
            raise RequestError(f"--with {text}: {key} is given twice")
        values[key] = value[1:-1] if re.fullmatch(r"\[.*\]", value) else value
    made = make(plugins.load("parts", name), values, f"--with {text}")
    own_name, fields = described.alias_of or name, resolved(made)
    return NamedPart(own_name, _spelled(own_name, fields, described, type(made)), fields, made)


def _short(head: str, name: str, described: plugins.Description) -> list[tuple[str, str]]:
    """The fields whose values are written after a part's name: ``der:0.5:0.5:500``."""
    values = head[len(name) :].split(":")[1:]
    if values and (len(values) != len(described.short) or "" in values):
        shapes = [":".join((name, *map(str.upper, described.short)))] if described.short else []
        shapes += [f"{name},{each.name}=VALUE" for each in described.fields[:1]]
        shown = repr(head) if head.endswith(":") else head
        raise RequestError(f"--with {shown}: write {' or '.join(shapes or [name])}")
    return list(zip(described.short, values, strict=True)) if values else []


def _spelled(name: str, fields: dict[str, Any], described: plugins.Description, cls: type[Any]) -> str:
    """The short form if it contains all values that are not defaults, else all fields."""
    long = ",".join((name, *(f"{key}={_text(value)}" for key, value in fields.items())))
    short = [_text(fields[key]) for key in described.short]
    if ":" in "".join(short) or (fields and not short):
        return long
    others = {key: value for key, value in fields.items() if key not in described.short}
    for own_name, fixed in {name: {}, **described.aliases}.items():
        if others.items() <= (defaults(cls) | fixed).items():
            return ":".join((own_name, *short))
    return long


def _text(value: Any) -> str:
    """A value as it is written after a field's name."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = str(value)
    if re.search(r"[,\[\]]", text):
        raise RequestError(f"{text!r} cannot be the value of a part's field: it has a comma or a bracket in it")
    return text.lower() if value is None or isinstance(value, bool) else text


def under_one_name(
    strategy: str, fields: dict[str, Any], parts: Sequence[NamedPart]
) -> tuple[str, dict[str, Any], Sequence[NamedPart]]:
    """One name for each method: a strategy with a part may be the same as another strategy (`same_as`).

    Returns its name, its fields, and the remaining parts.
    """
    for own in plugins.renamed() if parts else ():
        plain, _, part = own.same_as.partition(" --with ")
        name, *pairs = part.split(",")
        own_field = dict(map(split_field, pairs))  # the part's field -> the strategy's
        for i, each in enumerate(parts):
            if (strategy, each.name, each.fields.keys()) == (plain, name, own_field.keys()):
                fields = fields | {own_field[key]: value for key, value in each.fields.items()}
                return own.name, fields, [*parts[:i], *parts[i + 1 :]]
    return strategy, fields, parts
