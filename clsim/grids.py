"""Grids: a value ``a|b|c`` of a field stands for one run with each of the values."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from clsim.errors import RequestError

OPTIONS = ("backbone", "with", "precision", "image_size")  # in addition to fields, which epochs and batch_size are, too
MOST = 10_000  # settings of one request
Place = tuple[int, tuple[str, ...], list[str]]  # layer, names of a table and of a value in it, the values


def expanded(*layers: Any) -> Iterator[tuple[Any, ...]]:
    """The layers of a request with one value of each grid in them, for each combination; the last varies fastest.

    Raises RequestError for an empty value, and for more than MOST combinations.
    """
    places = [place for number, layer in enumerate(layers) for place in _places(number, layer)]
    count = 1
    for _, names, values in places:
        if not all(values):
            raise RequestError(f"{names[-1]}={'|'.join(values)} has an empty value in its grid")
        count *= len(values)
    if count > MOST:
        raise RequestError(f"the grid has {count:,} settings, more than {MOST:,}")
    for chosen in itertools.product(*(values for *_, values in places)):
        copies = copy.deepcopy(layers) if places else layers
        for (number, names, _), value in zip(places, chosen, strict=True):
            table = getattr(copies[number], names[0])
            for name in names[1:-1]:
                table = table[name]
            table[names[-1]] = value
        yield copies


def once(configs: Iterable[Any]) -> list[Any]:
    """The configurations, each once: strategies without a grid's field are the same for each of its values."""
    return list({config.to_toml(): config for config in configs}.values())


def _places(number: int, layer: Any) -> Iterator[Place]:
    for name in OPTIONS:
        if values := values_of(layer.options.get(name)):
            yield number, ("options", name), values
    tables: dict[tuple[str, ...], Any] = {("scenario",): layer.scenario, ("every",): layer.every}
    tables |= {("single", name): table for name, table in layer.single.items()}
    for names, table in tables.items():
        for key, value in table.items():
            if values := values_of(value):
                yield number, (*names, key), values


def values_of(value: Any) -> list[str] | None:
    """The values of a grid, each once; None if it is none."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]  # of an option that may be repeated
    return (
        list(dict.fromkeys(each.strip() for each in value.split("|")))
        if isinstance(value, str) and "|" in value
        else None
    )
