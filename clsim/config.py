"""The configuration of a run: defaults, then a preset, a TOML file and the command line; later ones override."""

import copy
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from clsim import grids, plugins
from clsim.backbones import registry
from clsim.errors import RequestError, unknown
from clsim.field_values import check, field_types, in_toml, make, resolved, split_field
from clsim.named_parts import NamedPart, named_part, split, under_one_name
from clsim.options import HASHED, OPTIONS, PATHS, flag
from clsim.plugin_paths import absolute, found_near
from clsim.unknown_fields import unknown_field

LARGEST_FILE = 1 << 20  # bytes of a configuration

__all__ = ["OPTIONS", "PATHS", "RunConfig", "cache_dir", "check", "make", "plan"]


# one run


@dataclass(frozen=True)
class RunConfig:
    """One run with every value set; the runner may still replace `device` and `precision`.

    `made` holds the strategy, the scenario and the parts after they are created. All runs of a request share them. It
    is ignored in comparisons and is not pickled. `written` is ignored in comparisons, too.
    """

    scenario: str
    scenario_fields: dict[str, Any]  # every field
    strategy: str
    strategy_fields: dict[str, Any]  # every field
    preset: str | None
    parts: tuple[str, ...]  # of --with, each in its normal form
    backbone: str
    weights: Path | None
    seed: int
    device: str
    precision: str  # fp32, bf16 or auto
    threads: int | None  # None: torch's default
    image_size: int | None  # pixels; None: the size that the weights were trained with
    eval_every: int | None  # images between evaluations inside an experience
    validation: (
        int | Literal["all"] | None
    )  # experiences to choose settings on, or "all"; None: the whole stream and its tests
    note: str | None  # a remark for the summary
    checkpoint_minutes: float
    data_dir: Path | None
    out: Path
    log: tuple[str, ...] = ()  # where the journal is written, too
    written: frozenset[str] = field(
        default=frozenset(), compare=False, repr=False
    )  # fields of the strategy in the call
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"made": {}}

    def hash(self, *fingerprints: str) -> str:
        """8 hex digits over everything that can change a result; `fingerprints`: of weights and data.

        Paths are left out. The texts of the plug-ins' files and of their base classes' files are included, built-in or
        not. Options that are not set are left out, so a new option does not change old hashes.
        """
        options = {name: value for name in HASHED if (value := getattr(self, name)) is not None}
        content = {
            "scenario": [plugins.identity(self.scenario, type(self._scenario)), self.scenario_fields],
            "strategy": [plugins.identity(self.strategy, type(self._strategy)), self.strategy_fields],
            "parts": [[plugins.identity(each.name, type(each.made)), each.fields] for each in self._parts],
            **options,
            "device": self.device.partition(":")[0],
            "fingerprints": fingerprints,
        }
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()

    def identities(self) -> dict[str, str]:
        """The plug-ins, e.g. ``strategy 'l2p'``, with the digests of their files' texts, as in the hash."""
        made = [("strategy", self.strategy, self._strategy), ("scenario", self.scenario, self._scenario)]
        made += [("part", each.name, each.made) for each in self._parts]
        return {
            f"{kind} {plugins.short_name(name)!r}": plugins.identity(name, type(plugin)) for kind, name, plugin in made
        }

    def make_strategy(self) -> Any:
        """A new strategy with these fields. Raises RequestError if they do not fit it."""
        return copy.deepcopy(self._strategy)

    def make_scenario(self) -> Any:
        """A new scenario with these fields. Raises RequestError if they do not fit it."""
        return copy.deepcopy(self._scenario)

    def make_parts(self) -> list[Any]:
        """New parts of --with, in the order given. Raises RequestError if their fields do not fit."""
        return [copy.deepcopy(each.made) for each in self._parts]

    @property
    def _strategy(self) -> Any:
        return _once(self.made, "strategies", self.strategy, self.strategy_fields)

    @property
    def _scenario(self) -> Any:
        return _once(self.made, "scenarios", self.scenario, self.scenario_fields)

    @property
    def _parts(self) -> list[NamedPart]:
        missing = [text for text in self.parts if text not in self.made]
        self.made.update({text: named_part(text) for text in missing})
        return [self.made[text] for text in self.parts]

    def directory(self, variant: str, digest: str) -> Path:
        """The run directory; `variant` is appended to the scenario's name, `digest` is the result of `hash`."""
        scenario = ".".join(filter(None, (plugins.short_name(self.scenario), variant)))
        last = f"{_safe(self.backbone)}-s{self.seed}-{digest}"
        return self.out / _safe(scenario) / _safe(plugins.short_name(self.strategy)) / last

    def to_toml(self) -> str:
        """The configuration as a file for --config, including all defaults; None is the text ``none``."""
        tables = {
            "scenario": {"name": self.scenario, **self.scenario_fields},
            "strategy": {"name": self.strategy, **self.strategy_fields},
        }
        names = [f.name for f in fields(self) if f.compare]
        top = {"with" if name == "parts" else name: getattr(self, name) for name in names}
        lines = [f"{k} = {in_toml(v)}" for k, v in top.items() if k.removesuffix("_fields") not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {in_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, directory: Path | None = None) -> "RunConfig":
        """The configuration that `to_toml` wrote. Raises RequestError if one of its plug-ins is no longer available.

        `directory`: of the run. Relative paths, which earlier versions wrote, are also looked for next to its parents.
        """
        layer = _read_toml(text, "config.toml")
        if directory is not None:
            for name in layer.options.keys() & {"scenario", "strategy", "weights", "with"}:
                layer.options[name] = found_near(layer.options[name], directory, is_file=name == "weights")
        (config,) = _plan(layer, _Layer())
        return config


def _key(kind: plugins.Kind, name: str, values: Mapping[str, Any]) -> str:
    """Equal for plug-ins with the same class and values."""
    return f"{kind} {name} {values!r}"


def _once(made: dict[str, Any], kind: plugins.Kind, name: str, values: Mapping[str, Any]) -> Any:
    """The plug-in with these values: the one created before, or a new one."""
    key = _key(kind, name, values)
    if key not in made:
        made[key] = make(plugins.load(kind, name), values, plugins.short_name(name))
    return made[key]


def _safe(name: str) -> str:
    """A name as part of a path: ``clip:ViT-B-16/openai`` -> ``clip-ViT-B-16-openai``."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")


def cache_dir() -> Path:
    """Where decoded images and features are kept: CLSIM_CACHE_DIR, or ~/.cache/clsim."""
    return Path(os.environ.get("CLSIM_CACHE_DIR") or "~/.cache/clsim").expanduser()


# from the request to runs


@dataclass
class _Layer:
    """The request of one source: a TOML file or the command line."""

    options: dict[str, Any] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)  # its fields
    every: dict[str, Any] = field(default_factory=dict)  # fields of every strategy that has them
    single: dict[str, dict[str, Any]] = field(default_factory=dict)  # strategy -> its own fields
    python: bool = False  # whether the fields are keywords of a Python call
    flags: set[str] = field(default_factory=set)  # fields given as options: --lr 0.1
    origin: str = ""  # prefix of error messages

    def get(self, option: str) -> Any:
        """The option's value; None if it is not given, or given as the text ``none``."""
        value = self.options.get(option)
        return None if isinstance(value, str) and value == "none" else value

    def written(self, strategy: str) -> frozenset[str]:
        """The fields given for a strategy, by its short name."""
        single = [key for prefix, each in self.single.items() if plugins.short_name(prefix) == strategy for key in each]
        return frozenset([*self.every, *single])


def plan(
    options: Mapping[str, Any], fields: Sequence[str] | Mapping[str, Any], toml: Path | None = None
) -> list[RunConfig]:
    """All runs of the request: for each setting of a grid, each strategy with each seed, on each pair of domains.

    `options` has OPTIONS, where None means "not given". `fields` are ``name=value`` texts, or a mapping, with names as
    on the command line (``x``, ``l2p.x``, ``scenario.x``, ``--x``). `toml` is a file with the same structure. Loads the
    plug-ins to check values. Raises RequestError for everything that does not fit.
    """
    pairs = fields if isinstance(fields, Mapping) else _pairs(fields)
    if toml is not None and not toml.is_file():
        raise RequestError(f"no file {toml} (--config)")
    if toml is not None and toml.stat().st_size > LARGEST_FILE:
        raise RequestError(f"{toml} (--config) is larger than {LARGEST_FILE >> 20} MB")
    file = _Layer() if toml is None else _read_toml(toml.read_text(encoding="utf-8", errors="replace"), str(toml))
    line = _command_line(options, pairs)
    line.python = isinstance(fields, Mapping)
    return grids.once(config for layers in grids.expanded(file, line) for config in _plan(*layers))


def _pairs(fields: Sequence[str]) -> dict[str, str]:
    """``name=value`` texts as a mapping; a name's last one counts. Raises RequestError for two spellings of a name."""
    found: dict[str, str] = {}
    for text in fields:
        if "=" not in text and (kinds := plugins.kinds(text)):
            option = {"strategies": "--strategy", "scenarios": "--scenario", "parts": "--with"}[kinds[0]]
            raise RequestError(f"{text!r} is a {plugins.SINGULAR[kinds[0]]}: write {option} {text}")
        if "=" not in text and text in registry.BUNDLED:
            raise RequestError(f"{text!r} is a backbone: write --backbone {text}")
        name, value = split_field(text)
        other = next((each for each in found if _plain(each) == _plain(name)), name)
        if other != name and found[other] != value:
            raise RequestError(f"{_plain(name)} is given twice: {other}={found[other]} and {name}={value}")
        found[name] = value
    return found


def _plain(name: str) -> str:
    """A field's name without the hyphens of an option: ``--top-k`` -> ``top_k``."""
    return name[2:].replace("-", "_") if name.startswith("--") else name


def _command_line(options: Mapping[str, Any], pairs: Mapping[str, Any]) -> _Layer:
    """The layer with the given options and fields."""
    layer = _Layer()
    for name, value in options.items():
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS)
        if value is not None:
            (layer.every if OPTIONS[name].of_strategy else layer.options)[name] = value
    for name, value in pairs.items():
        prefix, dot, key = _plain(name).rpartition(".")
        if not key or (dot and not prefix):
            raise RequestError(f"{name}={value} names no field: write x=1, STRATEGY.x=1 or scenario.x=1")
        if not dot and layer.every.get(key, value) != value:
            raise RequestError(f"{key} is given twice: {flag(key)} {layer.every[key]} and {name}={value}")
        if name.startswith("--"):
            layer.flags.add(key)
        table = (
            layer.scenario if prefix == "scenario" else layer.single.setdefault(prefix, {}) if prefix else layer.every
        )
        table[key] = value
    return layer


def _read_toml(text: str, origin: str) -> _Layer:
    """The layer of a TOML file."""
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise RequestError(f"{origin}: it has too many levels of lists or tables") from error
    except ValueError as error:  # no TOML, or a number of too many digits
        raise RequestError(f"{origin}: {error}") from error
    layer = _Layer(origin=f"{origin}: ")
    for key, value in tree.items():
        name = key.replace("-", "_")
        if name in ("scenario", "strategy") and isinstance(value, dict):
            if "name" in value:
                layer.options[name] = value.pop("name")
            (layer.scenario if name == "scenario" else layer.every).update(value)
        elif name in OPTIONS:
            (layer.every if OPTIONS[name].of_strategy else layer.options)[name] = value
        elif isinstance(value, dict):
            layer.single[key] = value
        else:
            raise RequestError(f"{origin}: {unknown('key', key, OPTIONS)}")
    return layer


def _plan(file: _Layer, line: _Layer) -> list[RunConfig]:
    """The runs of two layers; the second overrides the first."""

    def option(name: str) -> Any:
        given = [layer.get(name) for layer in (line, file)]
        value = next((value for value in given if value is not None), OPTIONS[name].default)
        return OPTIONS[name].checker(value, name)

    scenario, seeds, backbone = absolute(option("scenario")), option("seed"), option("backbone")
    scenario_class = plugins.load("scenarios", scenario)
    strategies = _strategies([*map(absolute, option("strategy"))])
    classes = {name: plugins.load("strategies", strategies[name]) for name in strategies}
    preset = option("preset")
    values, backbones = _presets(classes, preset)
    # a file for several strategies may be run with only one of them
    for layer, others in ((file, _names(file.get("strategy") or ())), (line, [])):
        try:
            _assign(layer, classes, scenario_class, values, others)
        except RequestError as error:
            raise RequestError(f"{layer.origin}{error}") from error
    parts = {each.text: each for each in map(named_part, map(absolute, split(option("with"))))}
    made: dict[str, Any] = dict(parts)
    streams = _streams(
        scenario, make(scenario_class, file.scenario | line.scenario, plugins.short_name(scenario)), made
    )
    common = {name: option(name) for name, each in OPTIONS.items() if each.per_run}
    configs = []
    for name, cls in classes.items():
        asked = make(cls, values[name], name)
        full_name, settled, left = under_one_name(strategies[name], resolved(asked), [*parts.values()])
        if full_name == strategies[name]:
            made[_key("strategies", full_name, settled)] = asked
        strategy = _fitting(_once(made, "strategies", full_name, settled), name, parts.values())
        common["backbone"] = backbone or backbones.get(name) or registry.default_backbone(strategy.needs_text)
        common["parts"] = tuple(each.text for each in left)
        common["preset"] = preset if preset in cls.presets else None
        common["written"] = line.written(name) & field_types(cls).keys()
        for seed in seeds:
            for stream in streams:
                configs.append(RunConfig(scenario, stream, full_name, settled, seed=seed, made=made, **common))
    return configs


def _streams(scenario: str, asked: Any, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of each stream of a scenario: one stream, or one for each pair of domains."""
    settled = resolved(asked)
    made[_key("scenarios", scenario, settled)] = asked
    return [settled | changes for changes in asked.expanded()]


def _fitting(strategy: Any, name: str, parts: Iterable[NamedPart]) -> Any:
    """Returns the strategy. Raises RequestError if a part adds to a loss and the strategy has none."""
    for each in parts:
        if getattr(each.made, "adds_to_loss", False) and not strategy.has_gradients:
            raise RequestError(f"--with {each.text} adds to the training loss, but {name} learns without one")
    return strategy


def _names(value: Any) -> list[str]:
    """``a,b`` or a list of texts -> names, each once."""
    found: list[str] = OPTIONS["strategy"].checker(value, "strategy")
    return found


def _strategies(names: Sequence[str]) -> dict[str, str]:
    """Short name -> name of every strategy asked for."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(plugins.short_name(name), name)
        if other != name:
            raise RequestError(f"{other} and {name} have the same short name: rename one of the classes")
    if not found:
        raise RequestError("no strategy is named")
    return found


def _presets(classes: Mapping[str, type[Any]], preset: str | None) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each strategy's values from the preset, and the backbones that the preset needs."""
    if preset is not None and not any(preset in cls.presets for cls in classes.values()):
        known = {name for cls in classes.values() for name in cls.presets}
        raise unknown(f"preset of {', '.join(classes)}", preset, known)
    values = {name: dict(cls.presets.get(preset or "", {})) for name, cls in classes.items()}
    backbones = {name: each.pop("backbone") for name, each in values.items() if "backbone" in each}
    return values, backbones


def _assign(
    layer: _Layer,
    classes: Mapping[str, type[Any]],
    scenario_class: type[Any],
    values: dict[str, dict[str, Any]],
    others: Sequence[str],
) -> None:
    """Put a layer's fields into each strategy's `values`; fields of `others` (not in the run) are left out."""
    for key, value in layer.every.items():
        owners = [name for name, cls in classes.items() if key in field_types(cls)]
        if not owners and key in layer.flags - field_types(scenario_class).keys():
            own = {flag(name) for cls in classes.values() for name in field_types(cls)}
            raise unknown("option", flag(key), {*map(flag, OPTIONS), *own})
        if not owners:
            raise unknown_field(key, value, classes, scenario_class, layer.python)
        for name in owners:
            values[name][key] = value
    for prefix, table in layer.single.items():
        name = plugins.short_name(prefix)
        if name in values:
            values[name].update(table)
        elif name not in map(plugins.short_name, others):
            raise unknown("strategy in this run", prefix, [*values, "scenario"])
