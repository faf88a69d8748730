"""The error for a field that no strategy of a request has: what may have been meant, in a line that can be read."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from clsim import plugins
from clsim.errors import RequestError, nearest
from clsim.field_values import field_types, fields_in_short
from clsim.options import OPTIONS, flag


def unknown_field(
    key: str, value: Any, classes: Mapping[str, type[Any]], scenario_class: type[Any], python: bool
) -> RequestError:
    """The error for the field `key` without a prefix; `classes`: the strategies; `python`: of a call from Python."""
    if key in field_types(scenario_class):
        written = f'**{{"scenario.{key}": {value!r}}}' if python else f"scenario.{key}={value}"
        return RequestError(f"{key} is a field of the scenario: write {written}")
    if key.replace("-", "_") in OPTIONS:
        return RequestError(f"{key} is an option: write {flag(key)} {value}")
    own = sorted({name for cls in classes.values() for name in field_types(cls)})
    of_scenario = [name for name in field_types(scenario_class) if name not in own]
    near = nearest(key, [*own, *of_scenario])
    hint = f" (did you mean {'scenario.' * (near[0] in of_scenario)}{near[0]}?)" if near else ""
    if others := _with_field(key):
        hint = f" ({', '.join(others)} {'has' if len(others) == 1 else 'have'} one)"
    return RequestError(f"{', '.join(classes)} has no field {key!r}{hint}; {fields_in_short(classes)}")


def _with_field(key: str) -> list[str]:
    """The strategies that have a field; those that cannot be read are left out."""
    found = []
    for name in plugins.names("strategies"):
        with suppress(RequestError):
            found += [name] if key in (each.name for each in plugins.describe("strategies", name).fields) else []
    return found
