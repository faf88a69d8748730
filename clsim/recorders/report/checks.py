"""Where the runs of a stream differ: what makes them hard to compare, their settings, and where they come from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clsim.recorders.report.data import Row
from clsim.results import Run

# settings that change what is compared, with the reason
DECISIVE = {
    "backbone": "other pretrained features",
    "mask": "other classes compete in the training loss",
    "test_classes": "other classes compete in the evaluation",
    "image_size": "images of another size",
    "validation": "results on validation images are not results on test images",
}
COMMON_SEEDS = "differences use only the seeds that both rows have"
TIMES = "seconds and images per second are not comparable"
TIMING = ("device", "threads", "precision")


@dataclass(frozen=True)
class Fact:
    """A property of runs: each value, with the names of the rows that have it."""

    name: str
    values: dict[str, list[str]]

    @property
    def text(self) -> str:
        """``current (l2p, er); seen (ncm)``."""
        return "; ".join(f"{value} ({', '.join(names)})" for value, names in self.values.items())


def warnings(rows: Sequence[Row]) -> list[str]:
    """Sentences about what makes the rows of a stream hard to compare; the worst first."""
    found: list[str] = []
    for name, reason in DECISIVE.items():
        # a mask has no effect without training steps
        counted = [row for row in rows if name != "mask" or any(map(_trains, row.runs))]
        found += _differing(_fact(name, counted, partial(_each_setting, name)), reason)
    for name, reason in (("weights", "other weights"), ("tables", "other images")):
        found += _differing(_fact(name, rows, partial(_each_environment, name)), reason)
    if _other_tests(rows):
        found.append("test images: runs with the same seed have other experiences, or another number of test images.")
    found += _differing(_fact("code", rows, _codes), "made by other code of clsim")
    for row in rows:
        for plugin, texts in _plugins(row).items():
            if len(texts) > 1:
                found.append(f"{row.name}: the code of {plugin} is not the same for all seeds ({', '.join(texts)}).")
    found += _differing(_fact("seeds", rows, _seeds), COMMON_SEEDS)
    for name in TIMING:
        found += _differing(_fact(name, rows, partial(_each_environment, name)), TIMES)
    found += _differing(_fact("torch", rows, partial(_packages, "torch")), "last digits and times may differ")
    return found


def code_notes(rows: Sequence[Row]) -> list[str]:
    """A sentence if runs were made by other code of clsim than the code that makes the report."""
    names = [row.name for row in rows if any(run.code_note is not None for run in row.runs)]
    if not names:
        return []
    return [f"made by other code of clsim than this report: {', '.join(names)}. Repeat with --fresh to run them again."]


def settings(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The settings in which rows differ, and each row's values; "-" where its strategy has no such setting.

    Settings that only one value is known of are left out, so also those of a single strategy.
    """
    own = [{key: _text(value) for key, value in row.runs[0].settings.items()} for row in rows]
    names = list(dict.fromkeys(key for each in own for key in each))
    shown = [name for name in names if len({each[name] for each in own if name in each}) > 1]
    return shown, [[each.get(name, "-") for name in shown] for each in own]


def provenance(rows: Sequence[Row]) -> list[Fact]:
    """Versions, code, device and data of the runs."""
    names = ("clsim", "code", "commit", "python", "device", "threads", "precision", "weights", "tables", "image_size")
    facts = [_fact("seeds", rows, _seeds)]
    facts += [_fact(name.replace("_", " "), rows, partial(_each_environment, name)) for name in names]
    packages = dict.fromkeys(name for row in rows for each in row.environments for name in each.get("packages", {}))
    facts += [_fact(name, rows, partial(_packages, name)) for name in packages]
    plugins = dict.fromkeys(name for row in rows for name in _plugins(row))
    facts += [_fact(name, rows, partial(_plugin, name)) for name in plugins]
    return [fact for fact in facts if fact.values]


def _fact(name: str, rows: Sequence[Row], values: Callable[[Row], Sequence[str]]) -> Fact:
    """The values that rows have, in order."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for value in dict.fromkeys(values(row)):
            found.setdefault(value, []).append(row.name)
    return Fact(name, found)


def _differing(fact: Fact, reason: str) -> Iterator[str]:
    """A sentence if there are several values."""
    if len(fact.values) > 1:
        yield f"{fact.name}: {reason}. {fact.text}."


def _each_setting(name: str, row: Row) -> list[str]:
    return [_text(run.settings[name]) for run in row.runs if name in run.settings]


def _each_environment(name: str, row: Row) -> list[str]:
    return [_text(each[name]) for each in row.environments if each.get(name) is not None]


def _packages(name: str, row: Row) -> list[str]:
    return [str(each["packages"][name]) for each in row.environments if name in each.get("packages", {})]


def _plugins(row: Row) -> Mapping[str, list[str]]:
    """Plug-in -> the digests of its code in the row's runs, each once."""
    found: dict[str, list[str]] = {}
    for each in row.environments:
        for name, identity in each.get("plugins", {}).items():
            digests = found.setdefault(name, [])
            if identity not in digests:
                digests.append(identity)
    return found


def _seeds(row: Row) -> list[str]:
    return [", ".join(map(str, row.seeds))]


def _plugin(name: str, row: Row) -> list[str]:
    return _plugins(row).get(name, [])


def _other_tests(rows: Sequence[Row]) -> bool:
    """Whether runs with the same seed were tested on other classes, or on another number of images."""
    found: dict[int, str] = {}  # by seed, because the order of classes may depend on it
    for row in rows:
        for seed, run in zip(row.seeds, row.runs, strict=True):
            tested = json.dumps([run.matrix["total"], run.matrix.get("classes")])
            if found.setdefault(seed, tested) != tested:
                return True
    return False


def _codes(row: Row) -> list[str]:
    return [str(run.summary.get("code") or "an earlier version") for run in row.runs]


def _trains(run: Run) -> bool:
    """Whether a run has training steps."""
    return run.figures.get("images_per_second") is not None


def _text(value: Any) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
