"""Values of fields: from the command line's text, TOML or Python to the type that a plug-in declares."""

import inspect
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clsim.errors import RequestError, nearest, unknown

T = TypeVar("T")
LONGEST = 100  # characters of a value in error messages
MOST_LISTED = 20  # names of fields in error messages
LARGEST = 2**63 - 1  # of whole numbers: files, torch and NumPy hold no larger ones


def split_field(text: str) -> tuple[str, str]:
    """``name=value`` -> name and value. Raises RequestError if there is no ``=``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"{text!r} is neither an option nor a field with a value, e.g. epochs=1")
    return name, value


def check(value: Any, annotation: Any, name: str) -> Any:
    """A value, or its text from the command line, converted to the type of the field `name`.

    Types are bool, int, float, str, Literal, tuples and unions of these. The text ``none`` is None if the type allows
    it. Raises RequestError that describes the expected value.
    """
    try:
        return _convert(value, annotation)
    except (ValueError, OverflowError, RecursionError) as error:
        choices = _choices(annotation)
        if choices:
            raise unknown(f"choice of {name}", _shown(value).strip("'"), choices) from error
        raise RequestError(f"{name} must be {_expected(annotation)}, not {_shown(value)}") from error


def _shown(value: Any) -> str:
    """A value as error messages show it: short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, a list of too many levels
        return f"a value of type {type(value).__name__} that is too large"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _convert(value: Any, annotation: Any) -> Any:
    """`check`, but it raises a plain ValueError."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        if NoneType in inner and (value is None or value == "none"):
            return None
        for member in inner:
            with suppress(ValueError):
                return _convert(value, member)
        raise ValueError
    if origin is Literal:
        for choice in inner:
            if value == str(choice) or (value == choice and type(value) is type(choice)):
                return choice
        raise ValueError
    if origin is tuple:
        return _convert_tuple(value, inner)
    if annotation is bool:
        return _convert_bool(value)
    if annotation is int and isinstance(value, int | str) and not isinstance(value, bool):
        return _convert_int(value)
    if annotation is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        if not math.isfinite(float(value)):
            raise ValueError
        return float(value)
    if annotation is str and isinstance(value, str):
        return value
    raise ValueError


def _convert_int(value: int | str) -> int:
    found = int(value)
    if abs(found) > LARGEST:
        raise ValueError
    return found


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def _convert_tuple(value: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    """``a,b`` or a list -> tuple; a single value that is not a text becomes a tuple of one."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if members[-1] is Ellipsis:
        members = (members[0],) * len(items)
    if len(items) != len(members):
        raise ValueError
    return tuple(_convert(item, member) for item, member in zip(items, members, strict=True))


def _choices(annotation: Any) -> list[str]:
    """The allowed texts of a Literal, with or without None; empty for other types."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) not in (Union, UnionType):
        return []
    members = [["none"] if member is NoneType else _choices(member) for member in get_args(annotation)]
    return [choice for member in members for choice in member] if all(members) else []


def _expected(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join("none" if member is NoneType else _expected(member) for member in inner)
    if origin is Literal:
        return f"one of {', '.join(_choices(annotation))}"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list (with commas), each {_expected(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values with commas: {', '.join(map(_expected, inner))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(annotation, f"of type {annotation} (which cannot be configured)")


def make(cls: type[T], values: Mapping[str, Any], name: str) -> T:
    """A plug-in with values for some of its fields. Raises RequestError; its message begins with `name`."""
    try:
        types = field_types(cls)
        for key in values:
            if key not in types:
                raise _no_field(key, cls, name)
        if not is_dataclass(cls):
            _require_no_arguments(cls)
        for key in _required(cls):
            if key not in values:
                raise RequestError(f"{key} has no default: give {key}=VALUE")
        return cls(**{key: check(value, types[key], key) for key, value in values.items()})
    except ValueError as error:  # ranges are checked in __post_init__
        raise RequestError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:  # any other mistake in a plug-in
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RequestError(f"{name}: __post_init__ of {cls.__name__} failed: {reason}") from error


def _no_field(key: str, cls: type[Any], name: str) -> RequestError:
    """The error for an unknown field. A plug-in that has many has its own listed, not those of every plug-in."""
    types = field_types(cls)
    if len(own_fields(cls)) == len(types):
        return unknown("field", key, types)
    near = nearest(key, types)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return RequestError(f"no field {key!r}{hint}; {fields_in_short({name: cls})}")


def fields_in_short(classes: Mapping[str, type[Any]]) -> str:
    """The own fields of plug-ins if they are few, and the command that shows all."""
    own = list(dict.fromkeys(field for cls in classes.values() for field in own_fields(cls)))
    listed = f"own fields: {', '.join(own)}; " if 0 < len(own) <= MOST_LISTED else ""
    return f"{listed}all: {', '.join(f'`clsim show {name}`' for name in list(classes)[:3])}"


def own_fields(cls: type[Any]) -> list[str]:
    """The fields that are not in the base class of all plug-ins of its kind; all if `cls` inherits none."""
    bases = [each for each in cls.__mro__ if is_dataclass(each)]
    shared = field_types(bases[-1]) if len(bases) > 1 else {}
    return [name for name in field_types(cls) if name not in shared]


def _require_no_arguments(cls: type[Any]) -> None:
    """Raises RequestError for a class that is not a dataclass and cannot be made without arguments."""
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise RequestError(
            f"{cls.__name__} cannot be made without arguments ({error}): make it a dataclass whose fields have defaults"
        ) from error


def field_types(cls: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields; empty for a class that is not a dataclass."""
    if not is_dataclass(cls):
        return {}
    try:
        hints = get_type_hints(cls)
    except Exception as error:  # an annotation may be any expression
        reason = f"{type(error).__name__}: {error}"
        raise RequestError(f"{cls.__name__}: the type of one of its fields cannot be read: {reason}") from error
    return {each.name: hints[each.name] for each in fields(cls) if each.init}


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of those dataclass fields that have one."""
    own = {f.name: f for f in fields(cls)} if is_dataclass(cls) else {}
    plain = {name: f.default for name, f in own.items() if f.default is not MISSING}
    return plain | {name: f.default_factory() for name, f in own.items() if f.default_factory is not MISSING}


def _required(cls: type[Any]) -> list[str]:
    """The fields that have no default."""
    return [name for name in field_types(cls) if name not in defaults(cls)]


def resolved(instance: Any) -> dict[str, Any]:
    """Every field of a plug-in with its value, converted to its type: a default of 0 for a float is 0.0."""
    own = type(instance).__name__
    return {
        key: check(getattr(instance, key), kind, f"{own}.{key}") for key, kind in field_types(type(instance)).items()
    }


def in_toml(value: Any) -> str:
    """A plain value in TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    # JSON's escapes are valid in TOML, except for one control character that TOML requires to be escaped, too
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
