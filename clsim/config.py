"""What a run is: defaults, overlaid by a preset, a TOML file and the command line, in this order."""

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from clsim import plugins
from clsim.backbones import registry
from clsim.errors import RequestError, unknown
from clsim.values import check, field_types, make, resolved, split_field

__all__ = ["OPTIONS", "RunConfig", "cache_dir", "check", "make", "plan"]

# what a run can be asked for, besides the fields of its plug-ins
OPTIONS = (
    "scenario",
    "strategy",
    "backbone",
    "weights",
    "seed",
    "epochs",
    "batch_size",
    "with",
    "preset",
    "device",
    "precision",
    "threads",
    "data_dir",
    "out",
    "image_size",
    "checkpoint_minutes",
    "eval_every",
)


# one run


@dataclass(frozen=True)
class RunConfig:
    """One run, every value settled; `device`, `precision` and `threads` may be left to the runner."""

    scenario: str
    scenario_fields: dict[str, Any]  # every field
    strategy: str
    strategy_fields: dict[str, Any]  # every field
    preset: str | None
    parts: tuple[str, ...]  # of --with
    backbone: str
    weights: Path | None
    seed: int
    device: str
    precision: str  # fp32, bf16 or auto
    threads: int | None
    data_dir: Path | None
    out: Path
    image_size: int | None = None
    checkpoint_minutes: float = 10.0
    eval_every: int | None = None

    def make_parts(self):
        from clsim.parts import named_part

        return [named_part(text) for text in self.parts]

    def hash(self, *fingerprints: str) -> str:
        """8 hex digits over everything that can change a result; `fingerprints` are those of weights and data.

        Paths are left out; a user's plug-in counts with its text.
        """
        content = {
            "scenario": [plugins.identity(self.scenario), self.scenario_fields],
            "strategy": [plugins.identity(self.strategy), self.strategy_fields],
            "parts": self.parts,
            "backbone": self.backbone,
            "seed": self.seed,
            "precision": self.precision,
            "device": self.device.partition(":")[0],
            "threads": self.threads,
            "fingerprints": fingerprints,
        }
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()

    def make_strategy(self) -> Any:
        """The strategy with these fields. Raises RequestError if they do not fit it."""
        return make(plugins.load("strategies", self.strategy), self.strategy_fields, self.strategy)

    def make_scenario(self) -> Any:
        """The scenario with these fields. Raises RequestError if they do not fit it."""
        return make(plugins.load("scenarios", self.scenario), self.scenario_fields, self.scenario)

    def directory(self, variant: str, digest: str) -> Path:
        """The run directory; `variant` joins the scenario's name, `digest` comes from `hash`."""
        scenario = ".".join(filter(None, (plugins.label(self.scenario), variant)))
        last = f"{_safe(self.backbone)}-s{self.seed}-{digest}"
        return self.out / _safe(scenario) / _safe(plugins.label(self.strategy)) / last

    def to_toml(self) -> str:
        """The configuration as a file for --config, every default written out; None is the text ``none``."""
        tables = {
            "scenario": {"name": self.scenario, **self.scenario_fields},
            "strategy": {"name": self.strategy, **self.strategy_fields},
        }
        top = {"with" if f.name == "parts" else f.name: getattr(self, f.name) for f in fields(self)}
        lines = [f"{k} = {_toml(v)}" for k, v in top.items() if k.removesuffix("_fields") not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> "RunConfig":
        """What `to_toml` wrote. Raises RequestError if its plug-ins are no longer to be had."""
        (config,) = _plan(_read_toml(text, "config.toml"), _Layer())
        return config


def _safe(name: str) -> str:
    """A name as part of a path: ``clip:ViT-B-16/openai`` -> ``clip-ViT-B-16-openai``."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")


def _toml(value: Any) -> str:
    """A plain value in TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's escapes are TOML's, but for one control character that TOML wants escaped, too
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def cache_dir() -> Path:
    """Where decoded images and features are kept: CLSIM_CACHE_DIR, or ~/.cache/clsim."""
    return Path(os.environ.get("CLSIM_CACHE_DIR") or "~/.cache/clsim").expanduser()


# from what was asked for to runs


@dataclass
class _Layer:
    """What one source, a TOML file or the command line, asks for."""

    options: dict[str, Any] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)  # its fields
    every: dict[str, Any] = field(default_factory=dict)  # fields of every strategy that has them
    single: dict[str, dict[str, Any]] = field(default_factory=dict)  # strategy -> fields of it alone
    origin: str = ""  # begins messages

    def get(self, option: str) -> Any:
        """The option's value; None, and the text ``none``, where it is not given."""
        value = self.options.get(option)
        return None if isinstance(value, str) and value == "none" else value


def plan(
    options: Mapping[str, Any], fields: Sequence[str] | Mapping[str, Any], toml: Path | None = None
) -> list[RunConfig]:
    """Every run that is asked for: each strategy with each seed, in the order given, on each pair of domains.

    `options` has OPTIONS, None standing for "not given"; `fields` ``name=value`` texts, or a mapping, with names as
    on the command line (``x``, ``l2p.x``, ``scenario.x``); `toml` is a file with the same tree. Loads the plug-ins to
    check values. Raises RequestError for whatever does not fit.
    """
    pairs = fields if isinstance(fields, Mapping) else dict(map(split_field, fields))
    if toml is not None and not toml.is_file():
        raise RequestError(f"no file {toml} (--config)")
    file = _Layer() if toml is None else _read_toml(toml.read_text(encoding="utf-8", errors="replace"), str(toml))
    return _plan(file, _command_line(options, pairs))


def _command_line(options: Mapping[str, Any], pairs: Mapping[str, Any]) -> _Layer:
    """The layer of what was given as options and fields."""
    layer = _Layer()
    for name, value in options.items():
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS)
        if value is not None:
            (layer.every if name in ("epochs", "batch_size") else layer.options)[name] = value
    for name, value in pairs.items():
        prefix, _, key = name.rpartition(".")
        table = (
            layer.scenario if prefix == "scenario" else layer.single.setdefault(prefix, {}) if prefix else layer.every
        )
        table[key] = value
    return layer


def _read_toml(text: str, origin: str) -> _Layer:
    """The layer of a TOML file."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{origin}: {error}") from error
    layer = _Layer(origin=f"{origin}: ")
    for key, value in tree.items():
        name = key.replace("-", "_")
        if name in ("scenario", "strategy") and isinstance(value, dict):
            if "name" in value:
                layer.options[name] = value.pop("name")
            (layer.scenario if name == "scenario" else layer.every).update(value)
        elif name in ("epochs", "batch_size"):
            layer.every[name] = value
        elif name in OPTIONS:
            layer.options[name] = value
        elif isinstance(value, dict):
            layer.single[key] = value
        else:
            raise RequestError(f"{origin}: {unknown('key', key, OPTIONS)}")
    return layer


def _plan(file: _Layer, line: _Layer) -> list[RunConfig]:
    """The runs of two layers, the second winning."""

    def option(name: str, default: Any = None) -> Any:
        given = [layer.get(name) for layer in (line, file)]
        return next((value for value in given if value is not None), default)

    scenario = check(option("scenario", "split_digits"), str, "scenario")
    scenario_class = plugins.load("scenarios", scenario)
    scenario_name = plugins.label(scenario)
    strategies = _strategies(option("strategy", "l2p"))
    classes = {name: plugins.load("strategies", strategies[name]) for name in strategies}
    values, backbones = _presets(classes, check(option("preset"), str | None, "preset"))
    # a file that compares several strategies may be run with one of them
    for layer, others in ((file, _names(file.get("strategy") or ())), (line, [])):
        try:
            _assign(layer, classes, scenario_class, values, others)
        except RequestError as error:
            raise RequestError(f"{layer.origin}{error}") from error
    asked = make(scenario_class, file.scenario | line.scenario, scenario_name)
    on_scenario = [resolved(asked) | changes for changes in asked.expanded()]
    common = _checked_options(option)
    configs = []
    for name, full_name in strategies.items():
        made = _fitting(make(classes[name], values[name], name), name, common["parts"])
        backbone = (
            check(option("backbone"), str | None, "backbone")
            or backbones.get(name)
            or registry.default_backbone(made.needs_text)
        )
        settled = resolved(made)
        for seed in _seeds(option("seed", 0)):
            configs += [
                RunConfig(scenario, fields, full_name, settled, backbone=backbone, seed=seed, **common)
                for fields in on_scenario
            ]
    return configs


def _fitting(strategy: Any, name: str, parts: Sequence[str]) -> Any:
    """The strategy itself. Raises RequestError for a part that adds to a loss where there is none."""
    from clsim.parts import REGULARISERS

    for text in parts:
        if text.partition(":")[0] in REGULARISERS and not strategy.has_gradients:
            raise RequestError(f"--with {text} adds to the training loss, and {name} learns without one")
    return strategy


def _names(value: Any) -> list[str]:
    """``a,b`` or a list of texts -> names, each once."""
    return list(dict.fromkeys(check(value, tuple[str, ...], "a list of names")))


def _strategies(value: Any) -> dict[str, str]:
    """Short name -> name of every strategy asked for."""
    found: dict[str, str] = {}
    for name in _names(value):
        other = found.setdefault(plugins.label(name), name)
        if other != name:
            raise RequestError(f"{other} and {name} have the same short name: rename one of the classes")
    if not found:
        raise RequestError("no strategy is named")
    return found


def _presets(classes: Mapping[str, type[Any]], preset: str | None) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each strategy's values from the preset, and the backbones that it asks for."""
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
    """Put a layer's fields into each strategy's `values`; those of `others` that are not in the run are left out."""
    for key, value in layer.every.items():
        owners = [name for name, cls in classes.items() if key in field_types(cls)]
        if not owners:
            raise _homeless(key, value, list(classes.values()), scenario_class, ", ".join(classes))
        for name in owners:
            values[name][key] = value
    for prefix, table in layer.single.items():
        name = plugins.label(prefix)
        if name in values:
            values[name].update(table)
        elif name not in map(plugins.label, others):
            raise unknown("strategy in this run", prefix, [*values, "scenario"])


def _homeless(
    key: str, value: Any, classes: Sequence[type[Any]], scenario_class: type[Any], names: str
) -> RequestError:
    """The error for a bare field that no strategy has."""
    if key in field_types(scenario_class):
        return RequestError(f"{key} is a field of the scenario: write scenario.{key}={value}")
    if key.replace("-", "_") in OPTIONS:
        return RequestError(f"{key} is an option: write --{key.replace('_', '-')} {value}")
    own = sorted({name for cls in classes for name in field_types(cls)})
    of_scenario = [name for name in field_types(scenario_class) if name not in own]
    near = difflib.get_close_matches(key, [*own, *of_scenario], n=1, cutoff=0.4)
    hint = f" (did you mean {'scenario.' * (near[0] in of_scenario)}{near[0]}?)" if near else ""
    known = ", ".join([*own, *(f"scenario.{name}" for name in of_scenario)])
    return RequestError(f"{names} has no field {key!r}{hint}; there are: {known}")


def _seeds(value: Any) -> list[int]:
    """``0,1,2``, a list or a number -> seeds, each once."""
    seeds = list(dict.fromkeys(check(value, tuple[int, ...], "seed")))
    if not seeds or min(seeds) < 0:
        raise RequestError(f"seed must be one or more whole numbers of at least 0, not {value!r}")
    return seeds


def _checked_options(option: Any) -> dict[str, Any]:
    """The options that every run of a plan shares."""
    from clsim.parts import named_part  # late: memories import torch

    parts = tuple(_names(option("with", ())))
    for text in parts:
        named_part(text)
    device = str(option("device", "auto"))
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise RequestError(f"device must be auto, cpu, cuda, cuda:N or mps, not {device!r}")
    threads = check(option("threads"), int | None, "threads")
    if threads is not None and threads < 1:
        raise RequestError(f"threads must be at least 1, not {threads}")
    weights = _path(option("weights"), "weights")
    if weights is not None and not weights.is_file():
        raise RequestError(f"no weights file {weights}")
    return {
        "preset": option("preset"),
        "parts": parts,
        "weights": weights,
        "device": device,
        "precision": check(option("precision", "auto"), Literal["auto", "fp32", "bf16"], "precision"),
        "threads": threads,
        "data_dir": _path(option("data_dir") or os.environ.get("CLSIM_DATA_DIR") or None, "data_dir"),
        "out": _path(option("out", "runs"), "out"),
        "image_size": check(option("image_size"), int | None, "image_size"),
        "checkpoint_minutes": check(option("checkpoint_minutes", 10.0), float, "checkpoint_minutes"),
        "eval_every": check(option("eval_every"), int | None, "eval_every"),
    }


def _path(value: Any, name: str) -> Path | None:
    return (
        None if value is None else Path(check(str(value) if isinstance(value, Path) else value, str, name)).expanduser()
    )
