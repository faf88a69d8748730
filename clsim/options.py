"""The options of `clsim run`: the command line, configurations and hashes are derived from this table.

Fields of plug-ins are not options: the plug-ins' files declare them.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clsim.errors import RequestError, unknown
from clsim.field_values import check

Checker = Callable[[Any, str], Any]  # (value, name of the option) -> converted value; raises RequestError


class Option(NamedTuple):
    """An option of a run. Python and TOML write it with underscores, the command line with hyphens."""

    name: str
    metavar: str
    help: str
    checker: Checker
    default: Any = None
    hashed: bool = False  # whether results can depend on it; None is never hashed
    compared: bool = False  # whether runs that differ in it get different rows in a comparison
    of_strategy: bool = False  # it is a field of every strategy, too
    per_run: bool = False  # an attribute of RunConfig, the same for all runs of a request
    is_path: bool = False


LOGS = ("csv",)  # where --log writes the journal, too; see clsim.recorders.logs
MOST_SEEDS = 10_000  # of one request
MOST_JOBS = 1024  # of one command
MOST_THREADS = 1024  # torch crashes with far more

# checkers


def of_type(annotation: Any) -> Checker:
    """A checker for values of a type."""
    return lambda value, name: check(value, annotation, name)


def at_least(low: int, annotation: Any) -> Checker:
    """A checker for numbers, or None, with a smallest value."""

    def checked(value: Any, name: str) -> Any:
        found = check(value, annotation, name)
        if found is not None and found < low:
            raise RequestError(f"{name} must be at least {low}, not {found}")
        return found

    return checked


def between(low: int, high: int, annotation: Any) -> Checker:
    """A checker for numbers, or None, with a smallest and a largest value."""

    def checked(value: Any, name: str) -> Any:
        found = at_least(low, annotation)(value, name)
        if found is not None and found > high:
            raise RequestError(f"{name} must be at most {high}, not {found}")
        return found

    return checked


def named(annotation: Any) -> Checker:
    """A checker for names, which are never empty."""

    def checked(value: Any, name: str) -> Any:
        found = check(value, annotation, name)
        if isinstance(found, str) and not found.strip():
            raise RequestError(f"{name} must be a name, not an empty text")
        return found

    return checked


def path(value: Any, name: str, file: bool = False) -> Path | None:
    """A path with ``~`` expanded, or None; with `file` it must be a file that exists."""
    if value is None:
        return None
    text = check(str(value) if isinstance(value, Path) else value, str, name)
    if not text or "\0" in text:
        raise RequestError(f"{name} must be a path, not {text!r}")
    require_utf8(name, text)
    found = Path(text).expanduser()
    if file and not found.is_file():
        raise RequestError(f"no {name} file {found}")
    return found.absolute() if file else found


def require_utf8(name: str, text: str) -> None:
    """Raises RequestError for a text that config.toml cannot hold, e.g. the name of a folder in Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} is not UTF-8: {os.fsencode(text)!r}; rename the file or folder") from error


def data_dir(value: Any, name: str) -> Path | None:
    """A folder of data sets; CLSIM_DATA_DIR if none is given."""
    return path(value if value is not None else os.environ.get("CLSIM_DATA_DIR") or None, name)


def device(value: Any, name: str) -> str:
    """A device as torch writes it, or ``auto``."""
    text = str(value)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise RequestError(f"{name} must be auto, cpu, cuda, cuda:N or mps, not {text!r}")
    return text


def seeds(value: Any, name: str) -> list[int]:
    """``0,1,2``, ``0-4``, ``0..4``, a list or a number -> seeds, each once."""
    asked = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    if isinstance(asked, str):
        asked = re.sub(r"(?<![\d.-])(\d+)(?:-|\.\.)(\d+)(?![\d.-])", _range, asked)
    found = list(dict.fromkeys(check(asked, tuple[int, ...], name)))
    if not found or min(found) < 0:
        raise RequestError(f"{name} must be one or more whole numbers of at least 0, not {value!r}")
    return found


def _range(ends: re.Match[str]) -> str:
    """``0-2`` or ``0..2`` -> ``0,1,2``."""
    if len(ends[1]) > 18 or len(ends[2]) > 18 or int(ends[2]) - int(ends[1]) >= MOST_SEEDS:
        raise RequestError(f"{ends[0]} is more than {MOST_SEEDS} seeds")
    return ",".join(map(str, range(int(ends[1]), int(ends[2]) + 1)))


def names(value: Any, name: str) -> list[str]:
    """``a,b`` or a list of texts -> names, each once."""
    return list(dict.fromkeys(check(value, tuple[str, ...], name)))


def logs(value: Any, name: str) -> tuple[str, ...]:
    """``a,b`` or a list of names from LOGS, each once."""
    found = names(value, name)
    for each in found:
        if each not in LOGS:
            raise unknown("log", each, LOGS)
    return tuple(found)


def first_experiences(value: Any, name: str) -> int | Literal["all"] | None:
    """A number of experiences, ``all``, or None."""
    if value in ("all", None):
        return value  # type: ignore[no-any-return]
    found: int | None = at_least(1, int)(value, name)
    return found


def jobs(value: Any, name: str) -> int | Literal["auto"]:
    """A number of runs at the same time, or ``auto``."""
    if value == "auto":
        return "auto"
    try:
        return int(between(1, MOST_JOBS, int)(value, name))
    except RequestError as error:
        raise RequestError(f"{name} must be auto or 1 to {MOST_JOBS}, not {value!r}") from error


def address(value: Any, name: str) -> str:
    """The address of a Ray cluster; empty for a local one, for which Python also has True."""
    if value is not True and not isinstance(value, str):
        raise RequestError(f"{name} must be the address of a Ray cluster, not {value!r}")
    return "" if value is True else value


def settings(value: Any, name: str) -> dict[str, str]:
    """``a=1,b=2``, or a mapping -> settings by name."""
    pairs = value.items() if isinstance(value, dict) else [each.partition("=")[::2] for each in str(value).split(",")]
    found = {str(key).strip(): str(each).strip() for key, each in pairs}
    if not all(key and each for key, each in found.items()):
        raise RequestError(f"{name} must be settings with values, e.g. partition=gpu,time=4:00:00, not {value!r}")
    return found


# the table


OPTIONS: dict[str, Option] = {
    each.name: each
    for each in (
        Option("scenario", "NAME", "stream to learn (default split_digits)", named(str), "split_digits"),
        Option("strategy", "A[,B...]", "methods (default l2p); FILE.py:CLASS for your own", names, "l2p"),
        Option(
            "backbone",
            "NAME",
            "pretrained transformer (default: one that comes with the package)",
            named(str | None),
            hashed=True,
        ),
        Option(
            "weights",
            "FILE",
            "local weights for the backbone",
            partial(path, file=True),
            compared=True,
            per_run=True,
            is_path=True,
        ),
        Option("seed", "0[,1,2]|0-4", "seeds (default 0)", seeds, 0, hashed=True),
        Option("epochs", "N", "passes over each experience", of_type(int), of_strategy=True),
        Option("batch_size", "N", "images of the stream in a step", of_type(int), of_strategy=True),
        Option(
            "with",
            "PART[,...]",
            "parts for every strategy: er:500,ewc:10 or der,alpha=0.5",
            of_type(tuple[str, ...]),
            (),
            compared=True,
        ),
        Option("preset", "NAME", "a published setting, see `clsim show STRATEGY`", of_type(str | None), per_run=True),
        Option(
            "device",
            "NAME",
            "auto (default), cpu, cuda, cuda:N or mps",
            device,
            "auto",
            hashed=True,
            compared=True,
            per_run=True,
        ),
        Option(
            "precision",
            "NAME",
            "auto (default), fp32 or bf16",
            of_type(Literal["auto", "fp32", "bf16"]),
            "auto",
            hashed=True,
            compared=True,
            per_run=True,
        ),
        Option(
            "threads",
            "N",
            "CPU threads",
            between(1, MOST_THREADS, int | None),
            hashed=True,
            compared=True,
            per_run=True,
        ),
        Option(
            "image_size",
            "S",
            "side of the tower's input images in pixels (default: that of its weights)",
            at_least(1, int | None),
            hashed=True,
            compared=True,
            per_run=True,
        ),
        Option(
            "eval_every",
            "N",
            "also evaluate inside an experience, after every N images; such a run has its own directory",
            at_least(1, int | None),
            hashed=True,
            per_run=True,
        ),
        Option(
            "validation",
            "N|all",
            "only the first N experiences, each tested on a fifth of its training images, to choose settings",
            first_experiences,
            hashed=True,
            compared=True,
            per_run=True,
        ),
        Option("note", "TEXT", "remark that is kept in the run's notes", of_type(str | None), per_run=True),
        Option("log", "csv", "also write losses, accuracies and metrics to log.csv of the run", logs, (), per_run=True),
        Option(
            "checkpoint_minutes",
            "M",
            "minutes between checkpoints inside an experience (default 10; 0: after every step)",
            at_least(0, float),
            10.0,
            per_run=True,
        ),
        Option(
            "data_dir",
            "DIR",
            "folder of the data sets, or your own data set (default: CLSIM_DATA_DIR, else the Hub)",
            data_dir,
            per_run=True,
            is_path=True,
        ),
        Option("out", "DIR", "folder for run directories (default runs)", path, "runs", per_run=True, is_path=True),
    )
}
# where runs are made: options of a command, and not of its runs, so that no file and no hash of a run has them
ENGINES: dict[str, Checker] = {
    "jobs": jobs,
    "devices": between(1, MOST_JOBS, int),
    "ray": address,
    "slurm": settings,
}
HASHED = tuple(each.name for each in OPTIONS.values() if each.hashed)
PATHS = tuple(each.name for each in OPTIONS.values() if each.is_path)
# not among the compared settings: they describe the directory or the request, or have a separate column
NOT_COMPARED = tuple(each.name for each in OPTIONS.values() if not each.compared)


def flag(name: str) -> str:
    """An option's or a field's name on the command line: ``batch_size`` -> ``--batch-size``."""
    return f"--{name.replace('_', '-')}"
