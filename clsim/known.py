"""Finds the finished runs of an earlier request without torch, backbone and images.

The name of a run directory contains a hash of everything that can change a result, also of weights and images, which a
run has to load for it. So a request that was carried out leaves a note in the cache: its run directories, and all that
decided them: the request itself, the environment, the processor, and size and times of every file that was imported or
read. A note counts only if none of these has changed. If it does not count, the request is prepared as always.

No note is made where this is not certain: for plug-ins that are not clsim's own, which may read anything; for weights
or data from the Hub, which may be replaced there; on an accelerator, which may be gone; for data sets of very many
files.
"""

import contextlib
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsim import checksums, config, rundir
from clsim.backbones.registry import BUNDLED
from clsim.listing import NOTES as NOTES_FOLDER
from clsim.reads import MOST, READ
from clsim.results import Run, load
from clsim.sealed import digest, packed, unpacked

if TYPE_CHECKING:
    from clsim.config import RunConfig

FORM = 1  # of a note
NOTES = 500  # at most; then the oldest is removed
MARGIN = 5.0  # seconds: a file changed so shortly before a request may have been read before it changed
# names of variables that may decide which files are read and how numbers are computed begin like this
VARIABLES = (
    *("ATEN_", "CLSIM_", "CUDA_", "DNNL_", "HF_", "HIP_", "HOME", "HUGGINGFACE", "LD_", "MKL_", "NVIDIA_"),
    *("OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "PYTORCH_", "ROCR_", "TIMM_", "TORCH_", "VIRTUAL_ENV", "XDG_"),
)
FLAGS = ("flags", "Features")  # the line with what the processor can do, on Intel's and on ARM's
ACCELERATORS = ("nvidia", "nvhost", "nvmap", "kfd", "dxg")  # names in /dev begin like this
MODULES = (".py", ".pyc", ".so", ".pyd", ".pth", ".egg-link", ".egg-info", ".dist-info")


@dataclass(frozen=True)
class Request:
    """A request with everything outside of files that decides which runs it has."""

    text: str
    began: float  # seconds since 1970
    accelerators: tuple[str, ...]

    @property
    def note(self) -> Path:
        """The file of its note."""
        return config.cache_dir() / NOTES_FOLDER / f"{digest(self.text.encode())}.z"


def request(options: Mapping[str, Any], fields: Sequence[str], toml: str | None) -> Request | None:
    """The request of a command line; None if this machine or a file of settings cannot be described."""
    began = time.time()
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(FLAGS))
        found = sorted(device.name for device in Path("/dev").iterdir() if device.name.startswith(ACCELERATORS))
        content = {
            "form": FORM,
            "options": options,
            "fields": fields,
            "toml": None if toml is None else Path(toml).read_text(encoding="utf-8"),
            "folder": str(Path.cwd()),
            "python": [sys.version, sys.prefix, sys.path, _importable(sys.path)],
            "variables": {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)},
            "processor": processor,
            "cores": len(os.sched_getaffinity(0)),  # --jobs divides them
            "accelerators": found,
        }
        return Request(json.dumps(content, sort_keys=True), began, tuple(found))
    except (OSError, ValueError, TypeError, StopIteration):
        return None


def _importable(folders: Iterable[str]) -> str:
    """A digest of the names that can be imported from these folders: another file may take the place of a module."""
    found = hashlib.blake2b(digest_size=16)
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            names = (each.name for each in entries if each.name.endswith(MODULES) or _is_package(each))
            found.update(json.dumps([folder, sorted(names)]).encode())
    return found.hexdigest()


def _is_package(entry: "os.DirEntry[str]") -> bool:
    return "." not in entry.name and entry.is_dir() and Path(entry.path, "__init__.py").exists()


def find(asked: Request | None) -> list[Run] | None:
    """The finished runs of the request, in its order; None if they must be prepared to be found."""
    if asked is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        note = unpacked(asked.note.read_bytes())
        if note["request"] == asked.text and note["state"] == _state(note["files"])[0]:
            directories = list(map(Path, note["runs"]))
            if all((directory / rundir.SUMMARY).exists() for directory in directories):
                return list(map(load, directories))  # a broken run is a ValueError here, and an error when prepared
    return None


def keep(asked: Request | None, configs: Sequence["RunConfig"], runs: Sequence[Run]) -> None:
    """Note the finished runs of the request, if it is certain what decided them."""
    if asked is None or READ.too_many or READ.uncertain or len(runs) != len(configs):
        return
    if not all(_certain(each, run, asked) for each, run in zip(configs, runs, strict=True)):
        return
    paths: set[str] = set()
    for path in _decisive(configs):
        paths.add(str(Path(path).absolute()))
        if len(paths) > MOST:
            return
    files = sorted(paths)
    state, newest = _state(files)
    if newest > asked.began - MARGIN:  # it may have been read before it was changed
        return
    note = {"request": asked.text, "files": files, "state": state, "runs": [str(run.directory) for run in runs]}
    with contextlib.suppress(OSError):  # a cache that is full or read-only; there is just no note
        _write(asked.note, packed(note))


def _certain(wanted: "RunConfig", run: Run, asked: Request) -> bool:
    """Whether everything that decides this run's hash is among the files of `_decisive` and in the request."""
    plugins = (wanted.make_scenario(), wanted.make_strategy(), *wanted.make_parts())
    hub = wanted.backbone not in BUNDLED and (wanted.weights is None or wanted.backbone.startswith("clip:"))
    return (
        all(type(each).__module__.startswith("clsim.") for each in plugins)
        and not hub
        and run.config.get("device") == "cpu"
        and (wanted.device == "cpu" or not asked.accelerators)
        and run.directory in READ.runs
    )


def _decisive(configs: Sequence["RunConfig"]) -> Iterator[str | Path]:
    """Every file that was imported, weights, files and folders of images."""
    for module in list(sys.modules.values()):
        if isinstance(file := getattr(module, "__file__", None), str):
            yield file
    yield from (Path(__file__).parent / "backbones" / "weights").iterdir()
    yield from (each.weights for each in configs if each.weights is not None)
    yield from READ.files
    yield from READ.places
    inside = {folder for file in READ.files for folder in file.parents}
    # a data set of another format than expected lies beside its usual folder
    other = any(not READ.folders & {file, *file.parents} for file in READ.files)
    for top in READ.folders | (READ.places & inside if other else set()):
        yield top
        for folder, folders, names in os.walk(top, followlinks=True):
            yield from (f"{folder}/{name}" for name in (*folders, *names))


def _state(files: Sequence[str]) -> tuple[str, float]:
    """A digest of size and times of all files, and the last time at which one was changed, in seconds since 1970.

    The second time (ctime) changes even where a program sets the first one back.
    """
    found, newest = hashlib.blake2b(digest_size=16), 0
    for file in files:
        try:
            about = os.stat(file)  # noqa: PTH116  # there are thousands of them
            same = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            found.update(f"{file}/{same}\n".encode(errors="replace"))
            newest = max(newest, about.st_mtime_ns, about.st_ctime_ns)
        except OSError:
            found.update(f"{file} is missing\n".encode(errors="replace"))
    return found.hexdigest(), newest / 1e9


def _write(path: Path, content: bytes) -> None:
    """Write the note whole or not at all, and remove the oldest if there are too many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    notes = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)
    for old in notes[:-NOTES]:
        old.unlink(missing_ok=True)


def show(runs: Sequence[Run], tables: bool = True) -> None:
    """Print what `clsim run` prints for runs that are only read: what was found, and, with `tables`, the final ones."""
    from clsim.data import found  # late, like the next one: quiet requests need neither
    from clsim.recorders import console

    told: set[str] = set()
    for run in runs:
        with contextlib.suppress(KeyError, ValueError):  # a run of an earlier version has no records of it
            records = json.loads(checksums.contents(run.directory, rundir.ENVIRONMENT)[rundir.ENVIRONMENT])["found"]
            first, *others = found.lines(records)
            text = "\n".join([f"{run.summary['scenario']}: {first}", *others])
            if text not in told:
                told.add(text)
                console.tell(text)
        if tables:
            console.report(run)
