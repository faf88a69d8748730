"""One run: from a configuration to a finished run directory, or back to where a broken one stood."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsim import checkpoint, config, plugins
from clsim.backbones import registry
from clsim.backbones.features import FeatureBank, View
from clsim.backbones.load import Backbone, load_backbone
from clsim.backbones.towers import Tower
from clsim.config import RunConfig
from clsim.data.batches import Loader
from clsim.data.streams import Benchmark, DataAccess
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation
from clsim.errors import RequestError
from clsim.events import Part, State
from clsim.learner import build_learner, learner_state, load_learner
from clsim.loop import Cost, Loop
from clsim.recorders import console
from clsim.recorders.journal import Journal
from clsim.recorders.pictures import Pictures
from clsim.recorders.tensorboard import TensorBoard
from clsim.results import Run, load
from clsim.strategy import Strategy

__all__ = ["load", "run", "run_all"]

LOCK = ".lock"


def run(**options: Any) -> Run | list[Run]:
    """Run from Python: ``clsim.run(scenario="split_digits", strategy="l2p", seed=0, top_k=3)``.

    Keywords are the command line's options, with underscores, and fields of the strategy; fields of the scenario are
    given as ``**{"scenario.train_per_class": 50}``. Returns the Run, or a list for several strategies or seeds.
    """
    fresh, quiet = bool(options.pop("fresh", False)), bool(options.pop("quiet", True))
    toml = options.pop("config", None)
    known = {name: options.pop(name) for name in list(options) if name in config.OPTIONS}
    configs = config.plan(known, options, None if toml is None else Path(toml))
    runs = run_all(configs, fresh=fresh, quiet=quiet)
    return runs[0] if len(runs) == 1 else runs


def run_all(
    configs: Sequence[RunConfig], *, fresh: bool = False, quiet: bool = False, dry_run: bool = False
) -> list[Run]:
    """Every configuration in turn; finished ones are read back. With `dry_run` nothing is run and the list is empty.

    Raises RequestError before anything is run if a strategy does not fit its backbone or the scenario.
    """
    others = {wanted.strategy: wanted for wanted in configs if wanted.strategy != configs[0].strategy}
    for wanted in others.values():  # a mistake in the last must not come to light when the first has been trained
        with _torch_settings(wanted):
            Job.prepare(wanted).learner()
    runs = []
    for wanted in configs:
        with _torch_settings(wanted):
            job = Job.prepare(wanted)
            if dry_run:
                job.learner()
                print(f"{job.directory}{' (finished)' if job.finished else ''}\n{job.config.to_toml()}")
                continue
            runs.append(job.execute(fresh=fresh, quiet=quiet))
    return runs


@contextlib.contextmanager
def _torch_settings(wanted: RunConfig) -> Iterator[None]:
    """Threads and deterministic algorithms for the run; the caller's settings and random state afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True)
        if wanted.threads is not None:
            torch.set_num_threads(wanted.threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def _resolve(wanted: RunConfig) -> RunConfig:
    """The configuration with device, precision and threads as this machine has them."""
    device = wanted.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch sees no CUDA device here")
    precision = wanted.precision
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else _cpu_has_bf16()
        precision = "bf16" if fast else "fp32"
    return replace(wanted, device=device, precision=precision, threads=torch.get_num_threads())


def _cpu_has_bf16() -> bool:
    """Whether matrix products in bfloat16 have instructions of their own."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


@dataclass
class Job:
    """A configuration with everything it names made: ready to run."""

    config: RunConfig
    hash: str
    directory: Path
    strategy: Strategy
    benchmark: Benchmark
    backbone: Backbone

    @classmethod
    def prepare(cls, wanted: RunConfig) -> "Job":
        """Make strategy, backbone and benchmark. Raises RequestError for whatever cannot be had."""
        settled = _resolve(wanted)
        strategy, scenario = settled.make_strategy(), settled.make_scenario()
        backbone = load_backbone(settled.backbone, settled.weights)
        if strategy.needs_text and backbone.text is None:
            raise RequestError(
                f"{settled.strategy} reads class names and needs a backbone with a text tower; "
                f"{settled.backbone} has none. {registry.WITH_TEXT} have one"
            )
        access = DataAccess(settled.data_dir, config.cache_dir(), backbone.image.pixels.stored_side)
        benchmark = scenario.build(access)
        digest = settled.hash(backbone.fingerprint(), *(table.fingerprint for table in benchmark.tables))
        directory = settled.directory(scenario.variant(), digest)
        return cls(settled, digest, directory, strategy, benchmark, backbone)

    @property
    def finished(self) -> bool:
        """Whether the run directory holds a whole run."""
        return (self.directory / "summary.json").exists()

    def execute(self, *, fresh: bool, quiet: bool) -> Run:
        """Run, or go on, or read back; then print the final table."""
        if fresh or not self.finished:
            made = self.learner()  # first: what the strategy refuses leaves no directory behind
            with alone_in(self.directory):
                if fresh:
                    clear(self.directory)
                if not self.finished:
                    self._run(*made, quiet)
        run = load(self.directory)
        if not quiet:
            console.report(run)
        return run

    def learner(self) -> tuple[nn.Module, Tower | None]:
        """A new learner and the bank's tower. Raises RequestError if backbone or stream do not suit the strategy."""
        device, bf16 = torch.device(self.config.device), self.config.precision == "bf16"
        return build_learner(self.strategy, self.backbone, self.benchmark.info, self.config.seed, device, bf16)

    def _run(self, learner: nn.Module, bank_tower: Tower | None, quiet: bool) -> None:
        (self.directory / "config.toml").write_text(self.config.to_toml())
        checkpoint.write_text(self.directory / "env.json", json.dumps(environment(self), indent=1))
        with contextlib.ExitStack() as opened:
            shown = opened.enter_context(contextlib.closing(console.Console(self.benchmark, quiet=quiet)))
            loop, journal = self._loop(learner, bank_tower, shown, opened)
            reset_peak_memory()
            loop.run()
            self._finish(loop, journal)

    def _loop(
        self,
        learner: nn.Module,
        bank_tower: Tower | None,
        shown: console.Console,
        opened: contextlib.ExitStack,
    ) -> tuple[Loop, Journal]:
        """The loop, standing where the checkpoint left it or at the start. Whatever must be closed goes to `opened`."""
        device = torch.device(self.config.device)
        bf16 = self.config.precision == "bf16"
        state = State(learner, self.benchmark.info, self.config.seed)
        parts = [*self.strategy.parts(), *self.config.make_parts()]
        folder = self.directory / "checkpoint"
        saved = checkpoint.load(folder) if (folder / "state.json").exists() else None
        board = TensorBoard(self.directory, self.benchmark)
        journal = Journal(self.directory / "events.jsonl", [board], offset=saved["offset"] if saved else 0)
        opened.enter_context(contextlib.closing(journal))
        state.log = lambda name, value: journal.log(state, name, value)
        tests = {e.table.fingerprint: self._loader(e.table, bank_tower, device) for e in self.benchmark.test_stream}
        pair = self.benchmark.protocol == "pair"
        drawn = [Pictures(self.directory, self.benchmark, tests, bf16, board)] if pair else []
        loop = Loop(
            self.strategy,
            self.benchmark,
            self._loader(self.benchmark.train_table, bank_tower, device, self.strategy.feature_views()),
            tests,
            state,
            [*parts, *drawn, journal, shown],
            bf16,
            save=lambda loop: checkpoint.save(folder, snapshot(loop, parts, journal)),
        )
        if saved is not None:
            restore(loop, parts, saved)
        return loop, journal

    def _loader(self, table: ImageTable, tower: Tower | None, device: torch.device, views: int = 0) -> Loader:
        pixels, reads = self.backbone.image.pixels, self.strategy.reads()
        if tower is None:
            return Loader(table, pixels, reads, device)
        how = Augmentation(self.strategy.crop_min, self.benchmark.flip)
        banks = [
            FeatureBank(tower, table, device, config.cache_dir(), view)
            for view in (None, *(View(number, how) for number in range(views)))
        ]
        return Loader(table, pixels, reads, device, banks[0], banks[1:])

    def _finish(self, loop: Loop, journal: Journal) -> None:
        """Write what is read of a finished run; summary.json last."""
        s = loop.state
        found = loop.measures()
        test = self.benchmark.test_stream
        names = self.benchmark.info.class_names
        matrix = {
            "correct": s.correct,
            "total": s.total,
            "experiences": [experience.name for experience in test],
            "classes": [[names[c] for c in experience.classes] for experience in test],
            "before": s.before,
        }
        if s.confusion is not None:
            matrix["confusion"] = {"target": s.confusion.tolist()}
        cost = costs(loop, self.backbone)
        summary = {
            "scenario": self.directory.parts[-3],
            "strategy": plugins.label(self.config.strategy),
            "backbone": self.config.backbone,
            "seed": self.config.seed,
            "config_hash": self.hash,
            "protocol": self.benchmark.protocol,
            "metrics": found.values,
            "cost": cost,
            "seconds": loop.cost.seconds_training + loop.cost.seconds_evaluation,
            "notes": found.notes | {f"caveat {i + 1}": text for i, text in enumerate(self.strategy.caveats())},
        }
        journal.end(found.values, cost, _hyper_parameters(self.config))
        checkpoint.write_text(self.directory / "matrix.json", json.dumps(matrix))
        checkpoint.write_text(self.directory / "summary.json", json.dumps(summary, indent=1))


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory. Raises RequestError if one is at work there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process, however it ends
        except BlockingIOError as error:
            raise RequestError(f"another process is at work in {directory}") from error
        yield


def clear(directory: Path) -> None:
    """Remove a run, but not the lock that is held on its directory."""
    (directory / "summary.json").unlink(missing_ok=True)  # first: half a removal must not look like a finished run
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _hyper_parameters(settled: RunConfig) -> dict[str, Any]:
    """The configuration without the paths in it."""
    tree = tomllib.loads(settled.to_toml())
    return {name: value for name, value in tree.items() if name not in ("data_dir", "out", "weights")}


def snapshot(loop: Loop, parts: Sequence[Part], journal: Journal) -> dict[str, Any]:
    """Everything that the rest of the run depends on."""
    s = loop.state
    optimizer = s.optimizer.state_dict() if s.epoch > 0 and s.optimizer is not None else None
    return {
        "info": asdict(s.info),
        "learner": learner_state(s.learner),
        "optimizer": optimizer,
        "parts": [part.state() for part in parts],
        "strategy": loop.strategy.state(),
        "trained": s.trained,
        "seen": list(s.seen),
        "epoch": s.epoch,
        "step": s.step,
        "correct": s.correct,
        "total": s.total,
        "before": s.before,
        "confusion": None if s.confusion is None else torch.from_numpy(s.confusion),
        "cost": asdict(loop.cost),
        "peak_memory": peak_memory(),
        "offset": journal.offset(),
    }


def restore(loop: Loop, parts: Sequence[Part], saved: dict[str, Any]) -> None:
    """Put the loop where `snapshot` found it. Weights are copied into place."""
    s = loop.state
    load_learner(s.learner, saved["learner"])
    if saved["optimizer"] is not None:
        s.optimizer = loop.strategy.configure_optimizer(s.learner)
        s.optimizer.load_state_dict(saved["optimizer"])
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load(state)
    loop.strategy.load(saved["strategy"])
    s.seen = tuple(saved["seen"])
    for name in ("trained", "epoch", "step", "correct", "total", "before"):
        setattr(s, name, saved[name])
    s.confusion = None if saved["confusion"] is None else saved["confusion"].numpy()
    loop.cost = Cost(**saved["cost"])


def costs(loop: Loop, backbone: Backbone) -> dict[str, float | int]:
    """What the run has cost: seconds, images of the stream a second, numbers of parameters, bytes.

    `stored_parameters` and `stored_bytes_per_experience` count what has to be kept besides the frozen towers, which
    all learners share: the learner's own tensors, and for the latter `memory_bytes` (images, logits, importances and
    copies of weights that parts keep), divided by the experiences of the stream.
    """
    learner, spent = loop.state.learner, loop.cost
    kept = learner_state(learner).values()
    memory = sum(part.stored_bytes for part in loop.parts)
    return {
        "seconds_training": spent.seconds_training,
        "seconds_evaluation": spent.seconds_evaluation,
        "images_per_second": spent.images / max(spent.seconds_training, 1e-9),
        "trainable_parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "stored_parameters": sum(t.numel() for t in kept),
        "backbone_parameters": sum(p.numel() for tower in backbone.towers() for p in tower.parameters()),
        "memory_bytes": memory,
        "stored_bytes_per_experience": (sum(t.nbytes for t in kept) + memory) / loop.state.info.num_experiences,
        "peak_memory_bytes": peak_memory(),
    }


def reset_peak_memory() -> None:
    """Start the peak anew, where Linux lets a process do so: earlier runs of this process must not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """The process's largest resident memory, or the GPU's where there is one, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment(job: Job) -> dict[str, Any]:
    """Versions, device and data, for whoever asks later where a figure came from."""
    packages = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scikit-learn")
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    gpu = job.config.device.startswith("cuda")
    return {
        "clsim": version("clsim"),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "threads": job.config.threads,
        "precision": job.config.precision,
        "weights": job.backbone.image.fingerprint(),
        "tables": [job.benchmark.train_table.fingerprint, job.benchmark.test_table.fingerprint],
        "class_order": [list(experience.classes) for experience in job.benchmark.train_stream],
    }
