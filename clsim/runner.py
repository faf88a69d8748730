"""One run: from a configuration, or from an interrupted run, to a finished run directory."""

import contextlib
import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsim import checked, checkpoint, config, listing, parallel, plugins, provenance, snapshot, summary
from clsim.backbones import registry
from clsim.backbones.features import FeatureBank, View
from clsim.backbones.load import Backbone
from clsim.backbones.towers import Tower
from clsim.config import RunConfig
from clsim.data import found
from clsim.data.batches import Loader
from clsim.data.formats import is_data_file
from clsim.data.streams import Benchmark
from clsim.data.table import ImageTable
from clsim.errors import RequestError, RunFailed
from clsim.events import Part, State
from clsim.hardware import reset_peak_memory, settled, torch_settings
from clsim.learner import build_learner
from clsim.loop import Loop
from clsim.options import ENGINES
from clsim.reads import READ
from clsim.recorders import console, logs
from clsim.recorders.journal import Journal
from clsim.recorders.pictures import Pictures
from clsim.recorders.tensorboard import TensorBoard
from clsim.results import Run, load
from clsim.rundir import alone_in, clear
from clsim.shared import Shared
from clsim.strategy import Strategy, waits_for_boundaries

__all__ = ["load", "run", "run_all", "run_one"]

Watch = Callable[[Path], Part]  # makes a part for a run's directory that may end the run


def run(**options: Any) -> Run | list[Run]:
    """Run from Python: ``clsim.run(scenario="split_digits", strategy="l2p", seed=0, top_k=3)``.

    Keywords are the options of the command line, with underscores, and fields of the strategy. Fields of the scenario
    are given as ``**{"scenario.train_per_class": 50}``. Returns the Run, or a list for several strategies or seeds.
    Nothing is printed, except with ``quiet=False``.

    ``jobs=2`` runs two at a time, in processes of their own (``jobs="auto"``: as many as there are cores or GPUs);
    ``ray=ADDRESS`` (True: a local cluster) and ``slurm={"partition": "gpu"}`` run elsewhere. If some fail, the others
    are finished first; then RunFailed is raised, with the last lines of each failure. ``devices=2`` makes one run after
    the other, each on two processes with a GPU of their own.
    """
    from clsim.engines import devices, many  # late: engines call this module

    where = {name: options.pop(name, None) for name in ENGINES}
    given = {name: value for name, value in where.items() if value is not None and value is not False}
    how = many.How(**{name: ENGINES[name](value, name) for name, value in given.items()})
    fresh, quiet = bool(options.pop("fresh", False)), bool(options.pop("quiet", True))
    toml = options.pop("config", None)
    known = {name: options.pop(name) for name in list(options) if name in config.OPTIONS}
    configs = config.plan(known, options, None if toml is None else Path(toml))
    engine = how.engine(configs)
    if how.devices > 1:
        runs = devices.run_all(configs, how.devices, fresh=fresh, quiet=quiet)
    elif engine is None:
        runs = run_all(configs, fresh=fresh, quiet=quiet)
    else:
        runs = many.finished(many.with_threads(configs, engine), engine, fresh, quiet)
    return runs[0] if len(runs) == 1 else runs


def run_one(
    wanted: RunConfig,
    *,
    fresh: bool = False,
    quiet: bool = True,
    shared: Shared | None = None,
    watch: Watch | None = None,
) -> Path:
    """Run one configuration, or continue it if it was interrupted; returns the directory of the finished run.

    The configuration and the path can be pickled: a scheduler can send the configuration to another process or machine
    and get the path back. `shared`: what a process keeps between its runs. `watch(directory)` makes a part that
    may end the run early. Raises RequestError if it cannot be run, RunFailed if the run cannot continue.
    """
    return _run(wanted, Shared([wanted]) if shared is None else shared, fresh, quiet, watch=watch).directory


def run_all(
    configs: Sequence[RunConfig],
    *,
    fresh: bool = False,
    quiet: bool = False,
    dry_run: bool = False,
) -> list[Run]:
    """Run every configuration in turn; finished ones are only read. With `dry_run` nothing is run; the list is empty.

    Raises RequestError before the first run if a strategy does not fit its backbone or the scenario, or if a field is
    given that none of the strategies uses. (A file of settings may have such fields: that of a run has every field,
    also those given for another strategy of its command.)
    """
    firsts = first_of_each(configs)
    if not dry_run:  # the first one is checked when it runs
        firsts = [wanted for wanted in firsts if wanted is not configs[0]]
    shared = Shared([*configs, *firsts])
    check(firsts, shared, configs)
    if not dry_run:
        return [_run(wanted, shared, fresh, quiet, configs) for wanted in configs]
    first = ""
    for wanted in configs:
        job = Job.prepare(wanted, shared)
        if not quiet:
            shared.tell(job)
        text = job.config.to_toml()
        about = listing.differences(first, text) if first else text
        print(f"{job.directory}{' (finished)' if job.finished else ''}", about, sep="\n")
        first = first or text
    return []


def first_of_each(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The first run of each strategy, and of each of its settings in a grid."""
    firsts: dict[str, RunConfig] = {}
    for wanted in configs:
        about = (wanted.strategy, wanted.strategy_fields, wanted.backbone, wanted.image_size, wanted.parts)
        firsts.setdefault(repr(about), wanted)
    return list(firsts.values())


def check(firsts: Sequence[RunConfig], shared: Shared, request: Sequence[RunConfig]) -> None:
    """Check strategies before any run is trained, so that errors appear at once. Raises RequestError.

    `request`: all runs asked for, to find fields that none of their strategies uses.
    """
    for wanted in firsts:
        with torch_settings(wanted.threads):
            job = Job.prepare(wanted, shared)
            shared.refuse_unused(job, request)
            job.learner()


def _run(
    wanted: RunConfig,
    shared: Shared,
    fresh: bool,
    quiet: bool,
    request: Sequence[RunConfig] | None = None,
    watch: Watch | None = None,
) -> Run:
    """`request`: all runs asked for, to find fields that none of their strategies uses; None: not checked."""
    with torch_settings(wanted.threads):
        job = Job.prepare(wanted, shared)
        if request is not None:
            shared.refuse_unused(job, request)
        if not quiet:
            shared.tell(job)
        job.watch = watch
        return job.execute(fresh=fresh, quiet=quiet)


@dataclass
class Job:
    """A configuration with its strategy, backbone and benchmark, ready to run."""

    config: RunConfig
    hash: str
    directory: Path
    strategy: Strategy
    parts: list[Part]  # of --with
    benchmark: Benchmark
    backbone: Backbone
    weights: str = field(repr=False)  # fingerprint of the backbone
    records: list[found.Record] = field(default_factory=list, repr=False)  # what was found for the benchmark
    code: str = ""  # digest of the code that makes the run, set when it begins
    watch: Watch | None = field(default=None, repr=False)  # makes a part that may end the run

    @classmethod
    def prepare(cls, wanted: RunConfig, shared: Shared | None = None, borrowed: bool = False) -> "Job":
        """Make strategy, backbone and benchmark. Raises RequestError if one is unavailable or does not fit.

        `borrowed`: the job is only looked at, and not run, so that its backbone is not copied.
        """
        if wanted.data_dir is not None and not (wanted.data_dir.is_dir() or is_data_file(wanted.data_dir)):
            why = " (it is a file)" if wanted.data_dir.exists() else ""
            raise RequestError(f"no such data directory: {wanted.data_dir}{why}")
        device, precision = settled(wanted.device, wanted.precision)
        parallel.require_device(device)
        asked = replace(wanted, device=device, precision=precision)
        shared = shared or Shared([wanted])
        strategy, scenario, parts = wanted.make_strategy(), wanted.make_scenario(), wanted.make_parts()
        backbone, fingerprint = shared.backbone(wanted, borrowed)
        if strategy.needs_text and backbone.text is None:
            raise RequestError(
                f"{asked.strategy} reads class names and needs a backbone with a text tower, but "
                f"{asked.backbone} has none. {registry.WITH_TEXT} have one"
            )
        benchmark, records = shared.benchmark(wanted, scenario, backbone.image.pixels.stored_side)
        _require_boundaries(asked, strategy, parts, benchmark)
        digest = asked.hash(fingerprint, *(table.fingerprint for table in benchmark.tables))
        variants = [scenario.variant(), *(["validation"] if asked.validation is not None else [])]
        directory = asked.directory(".".join(filter(None, variants)), digest)
        READ.runs.add(directory)
        return cls(asked, digest, directory, strategy, parts, benchmark, backbone, fingerprint, records)

    @property
    def finished(self) -> bool:
        """Whether the run directory contains a finished run."""
        return (self.directory / "summary.json").exists()

    def execute(self, *, fresh: bool, quiet: bool) -> Run:
        """Run or continue, or only read a finished run; then print the final table."""
        world = parallel.current()
        if world.told(fresh or not self.finished):
            made = self.learner()  # first: if the strategy raises an error, no directory is left
            if world.rank:
                self._follow(*made, world)
            else:
                with alone_in(self.directory):
                    if fresh:
                        clear(self.directory)
                    if world.told(not self.finished):
                        self._run(*made, quiet)
            world.wait()
        run = load(self.directory)
        if not quiet:
            console.report(run)
        return run

    def learner(self) -> tuple[nn.Module, Tower | None]:
        """A new learner and the bank's tower. Raises RequestError if backbone or stream do not fit the strategy."""
        device, bf16 = torch.device(self.config.device), self.config.precision == "bf16"
        with checked.blamed(self._named(), RequestError):
            made = build_learner(self.strategy, self.backbone, self.benchmark.info, self.config.seed, device, bf16)
        parallel.current().prepare(type(self.strategy).__name__, made[0])
        return made

    def _named(self) -> dict[str, Any]:
        """The plug-ins, as errors name them."""
        named = {f"part {type(part).__name__}": part for part in self.parts}
        return {f"strategy {plugins.short_name(self.config.strategy)!r}": self.strategy, **named}

    def _run(self, learner: nn.Module, bank_tower: Tower | None, quiet: bool) -> None:
        self.code = self._code()
        checkpoint.write_text(self.directory / "config.toml", self.config.to_toml())
        about = summary.environment(self.config, self.benchmark, self.weights)
        about |= {"code": self.code, "found": self.records, "processes": parallel.current().size}
        checkpoint.write_text(self.directory / "env.json", json.dumps(about, indent=1))
        with contextlib.ExitStack() as opened:
            shown = opened.enter_context(contextlib.closing(console.Console(self.benchmark, quiet=quiet)))
            loop, journal = self._loop(learner, bank_tower, shown, opened)
            reset_peak_memory()
            with checked.blamed(self._named(), RunFailed):
                loop.run()
            self._finish(loop, journal)

    def _follow(self, learner: nn.Module, bank_tower: Tower | None, world: parallel.World) -> None:
        """In every process but the first: the same steps, and nothing is written."""
        if not world.told(True):
            return
        parts = [*self.strategy.parts(), *self.parts]
        loop = self.loop(State(learner, self.benchmark.info, self.config.seed), bank_tower, parts)
        saved: dict[str, Any] | None = world.told(None)
        if saved is not None:
            snapshot.restore(loop, parts, saved)
        with checked.blamed(self._named(), RunFailed):
            loop.run()

    def _code(self) -> str:
        """The digest of clsim's code, or ``OLD+NEW`` with a warning if this run was started by other code.

        Such a run is made by neither of the two. Its text equals no digest, so readers are always told.
        """
        now = provenance.code_digest()
        with contextlib.suppress(OSError, ValueError):
            begun = json.loads((self.directory / "env.json").read_text()).get("code") or "unknown"
            if begun != now and (self.directory / "checkpoint" / "state.json").exists():
                print(
                    f"clsim: {self.directory} was started by other code of clsim; use --fresh to start it again",
                    file=sys.stderr,
                )
                return begun if begun.endswith(f"+{now}") else f"{begun}+{now}"
        return now

    def _loop(
        self,
        learner: nn.Module,
        bank_tower: Tower | None,
        shown: console.Console,
        opened: contextlib.ExitStack,
    ) -> tuple[Loop, Journal]:
        """The loop, at its checkpoint or at the start. Objects that must be closed are added to `opened`."""
        state = State(learner, self.benchmark.info, self.config.seed)
        parts = [*self.strategy.parts(), *self.parts]
        folder = self.directory / "checkpoint"
        saved = parallel.current().told(_saved(folder))
        board = TensorBoard(self.directory, self.benchmark)
        where = (saved["offset"], saved.get("journal")) if saved else (0, None)
        listeners = [board, *logs.opened(self.config.log, self.directory, self.benchmark)]
        journal = Journal(self.directory / "events.jsonl", listeners, *where)
        opened.enter_context(contextlib.closing(journal))
        loop = self.loop(state, bank_tower, parts)
        drawn = self.benchmark.rules.draws_target
        pictures = [Pictures(self.directory, self.benchmark, loop.test_loaders, board)] if drawn else []
        watch = [] if self.watch is None else [self.watch(self.directory)]
        loop.parts = [*parts, *pictures, *watch, journal, shown]
        loop.tools.record = journal.log
        loop.save = lambda loop: checkpoint.save(folder, snapshot.take(loop, parts, journal.offset(), journal.digest()))
        if saved is not None:
            snapshot.restore(loop, parts, saved)
        return loop, journal

    def loop(self, state: State, bank_tower: Tower | None, parts: Sequence[Part]) -> Loop:
        """The loop over this job's benchmark, at its start, without recorders and checkpoints."""
        views = self.strategy.feature_views()
        tests = {e.table.fingerprint: self.loader(e.table, bank_tower) for e in self.benchmark.test_stream}
        return Loop(
            self.strategy,
            self.benchmark,
            self.loader(self.benchmark.train_table, bank_tower, views),
            tests,
            state,
            parts,
            self.config.precision == "bf16",
            save=lambda loop: None,
            save_seconds=60 * self.config.checkpoint_minutes,
            eval_every=self.config.eval_every or self.benchmark.eval_every,
        )

    def loader(self, table: ImageTable, tower: Tower | None, views: int = 0) -> Loader:
        """Batches of a table's rows; with a tower, also features from its bank."""
        pixels, reads, device = self.backbone.image.pixels, self.strategy.reads(), torch.device(self.config.device)
        if tower is None:
            return Loader(table, pixels, reads, device)
        how = self.strategy.augmentation(self.benchmark.flip)
        banks = [
            FeatureBank(tower, table, device, config.cache_dir(), view)
            for view in (None, *(View(number, how) for number in range(views)))
        ]
        return Loader(table, pixels, reads, device, banks[0], banks[1:])

    def _finish(self, loop: Loop, journal: Journal) -> None:
        """Write the result files of a finished run; summary.json last."""
        measured, cost = loop.measures(), summary.costs(loop, self.backbone)
        names = {
            "scenario": self.directory.parts[-3],
            "strategy": plugins.short_name(self.config.strategy),
            "backbone": self.config.backbone,
            "seed": self.config.seed,
            "config_hash": self.hash,
            "code": self.code,
        }
        journal.end(measured.values, cost, _hyper_parameters(self.config))
        journal.close()  # now, so that its checksum, and that of TensorBoard's file, are known
        described = summary.summary(loop, measured, cost, names)
        if self.config.note is not None:
            described["notes"]["note"] = self.config.note
        summary.write(self.directory, loop, described)


def _saved(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of an unfinished run; None if there is none. Raises RequestError if it is broken."""
    try:
        found: dict[str, Any] = checkpoint.load(folder)
    except FileNotFoundError:
        return None
    except RequestError as error:
        raise RequestError(f"{error}; --fresh starts the run again") from error
    return found


def _require_boundaries(asked: RunConfig, strategy: Strategy, parts: Sequence[Part], benchmark: Benchmark) -> None:
    """Raises RequestError for a strategy or a part that needs boundaries if the stream has none."""
    if all(experience.boundary for experience in benchmark.train_stream):
        return
    waiting = [type(part).__name__ for part in parts if waits_for_boundaries(part)]
    if strategy.needs_boundaries:
        waiting.insert(0, asked.strategy)
    if waiting:
        raise RequestError(
            f"{', '.join(waiting)} must know where an experience begins and ends; {asked.scenario} has no boundaries"
        )


def _hyper_parameters(asked: RunConfig) -> dict[str, Any]:
    """The configuration without its paths."""
    tree = tomllib.loads(asked.to_toml())
    return {name: value for name, value in tree.items() if name not in config.PATHS}
