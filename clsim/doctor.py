"""`clsim doctor`: what this machine has and what clsim makes of it, on one screen."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from clsim import config, listing, plugins
from clsim.data.formats import has_named
from clsim.data.readers import Hub
from clsim.data.sources import Source
from clsim.errors import RequestError
from clsim.version import VERSION

PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "avalanche-lib", "numpy", "scikit-learn")
HUB_SECONDS = 3.0  # how long the Hub may take to answer
SPEED_SECONDS = 0.4  # of the measurement in each precision
READERS = re.compile(r"\bdata\.(parquet|images|folder|tree)\(")  # how a scenario asks for images that it does not have
WIDTH = 100  # characters of a line of names


def report(data_dir: Path | None) -> str:
    """The whole screen. Nothing is downloaded, decoded or changed; no environment variable is printed but paths."""
    rows = [("clsim", VERSION), ("Python", f"{platform.python_version()} ({sys.executable})")]
    rows.append(("packages", ", ".join(f"{name} {version(name) or 'MISSING'}" for name in PACKAGES)))
    rows.append(("extras", ", ".join(extras())))
    if importlib.util.find_spec("torch") is not None:
        rows += machine()
    folder = config.cache_dir()
    rows.append(("cache", f"{folder}: {listing.size_text(listing.size(folder))}"))
    rows += data(data_dir)
    rows.append(("Hub", hub()))
    return listing.columns(rows)


def version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> list[str]:
    """The optional parts of clsim, each with what of it is missing."""
    try:
        required = importlib.metadata.requires("clsim") or []
    except importlib.metadata.PackageNotFoundError:
        return ["unknown: clsim itself is not installed"]
    missing: dict[str, list[str]] = {}
    for text in required:
        found = re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]", text)
        if found and found[2] != "dev":
            absent = missing.setdefault(found[2], [])
            absent += [] if version(found[1]) else [found[1]]
    return [f"{name} (not installed: {', '.join(absent)})" if absent else name for name, absent in missing.items()]


# the machine


def machine() -> list[tuple[str, str]]:
    """Cores, threads, devices, and how fast bfloat16 is."""
    import torch  # late: seconds

    from clsim.hardware import settled

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    devices += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    device, precision = settled("auto", "auto")
    ratio = speed(device, torch.bfloat16) / speed(device, torch.float32)
    return [
        ("CPU", f"{cores} of {os.cpu_count()} cores usable, {torch.get_num_threads()} threads of torch"),
        ("devices", ", ".join(["cpu", *devices])),
        ("auto", f"--device auto is {device}, --precision auto is {precision}"),
        ("bf16", f"matrix products at {ratio:.2g} times the speed of fp32 on {device}"),
    ]


def speed(device: str, kind: Any) -> float:
    """Matrix products a second, of the sizes of a small transformer's layer, in about SPEED_SECONDS."""
    import torch

    left, right = (torch.ones(shape, dtype=kind, device=device) for shape in ((512, 384), (384, 1536)))

    def multiply() -> None:
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    multiply()  # the first one chooses a kernel
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SPEED_SECONDS:
        multiply()
        count += 1
    return count / (time.perf_counter() - began)


# data


def data(data_dir: Path | None) -> list[tuple[str, str]]:
    """Which scenarios could run from the data directory, by the readers' own look at its files."""
    if data_dir is None:
        rows = [("data", "no --data-dir and no CLSIM_DATA_DIR: data sets would come from the Hub")]
    elif not data_dir.is_dir():
        rows = [("data", f"{data_dir}: no such folder")]
    else:
        rows = [("data", str(data_dir))]
    ready, lacking, alone = [], [], []
    for name in plugins.names("scenarios"):
        asked = asked_of(name, data_dir)
        if asked is None:
            alone.append(name)
        elif asked.any_set:
            continue  # it reads whatever folder it is given
        elif asked.missing and data_dir is None:
            lacking.append(name)
        elif asked.missing:
            lacking.append(f"{name} ({', '.join(asked.missing)})")
        else:
            ready.append(name)
    rows += _wrapped("  complete", ready) + _wrapped("  missing" if data_dir else "  from Hub", lacking)
    return rows + _wrapped("  need none", alone)


class Asked:
    """Stands in for DataAccess while a scenario is built: it notes what is asked for, and reads nothing."""

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        self.found: list[str] = []
        self.missing: list[str] = []
        self.any_set = False  # whether it reads a data set of any name

    def parquet(
        self, folder: str, split: str, image: str, label: str, domain: str | None = None, hub: Hub | None = None
    ) -> Source:
        """Note whether the split is there. Returns a source without images."""
        place = None if self.data_dir is None else self.data_dir / folder
        text = f"{folder}/{split}" if place is not None and place.is_dir() else folder
        try:
            there = self.data_dir is not None and has_named(self.data_dir, folder, split)
        except (RequestError, OSError):
            there, text = False, f"{text} is damaged"
        names = self.found if there else self.missing
        names += [] if text in names else [text]
        return Source(lambda row: b"", [], np.zeros(0, np.int64), (), text)

    def images(self, *_: Any) -> Any:
        """Ends the look: what is asked for has no name."""
        self.any_set = True
        raise Enough

    tree = folder = images

    def table(self, source: Source, *_: Any, **__: Any) -> Source:
        """The source: there are no images to decode."""
        return source


class Enough(Exception):
    """No more can be known without reading."""


def asked_of(scenario: str, data_dir: Path | None) -> Asked | None:
    """What a scenario with its default fields asks for; None if it has its own images, or draws them."""
    asked = Asked(data_dir)
    # no stream can be made of sources without images: what was asked for until then is known
    with contextlib.suppress(Exception):
        if READERS.search(plugins.describe("scenarios", scenario).path.read_text(encoding="utf-8")):
            plugins.load("scenarios", scenario)().build(asked)
    return asked if asked.found or asked.missing or asked.any_set else None


def _wrapped(title: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The names in lines of at most WIDTH characters, the first with the title."""
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) > WIDTH:
            lines.append("")
        lines[-1] += f", {name}" if lines[-1] else name
    return [(title if number == 0 else "", line) for number, line in enumerate(lines) if line]


# the Hub


def hub(seconds: float = HUB_SECONDS) -> str:
    """Whether the Hugging Face Hub answers; asks nobody if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants  # late: only here

    if constants.HF_HUB_OFFLINE:
        return "not asked: HF_HUB_OFFLINE is set"
    place = urlsplit(constants.ENDPOINT).hostname  # without the name and password that an address may have
    said: list[str] = []

    def ask() -> None:
        from urllib import error, request

        try:
            with request.urlopen(request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds):
                said.append("reachable")
        except error.HTTPError as answer:  # it is there, and does not like the question
            said.append(f"reachable (status {answer.code})")
        except (OSError, ValueError):
            said.append("not reachable: only local data and weights can be used")

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(seconds)
    return f"{place} is {said[0] if said else f'not reachable within {seconds:.0f} s'}"
