"""What the runs of one process share: backbones and benchmarks, each loaded once."""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clsim import checked, config, plugins, unused
from clsim.backbones.load import Backbone, load_backbone
from clsim.config import RunConfig
from clsim.data import effects, found
from clsim.data.streams import Benchmark, DataAccess
from clsim.data.validation import validated
from clsim.errors import RequestError
from clsim.field_values import defaults
from clsim.recorders import console

if TYPE_CHECKING:
    from clsim.runner import Job

KEPT = 1 << 30  # bytes of backbones that a worker process keeps between its runs
MOST_BENCHMARKS = 32  # that a process keeps: each has the rows of its stream; images are in files, or small


class Shared:
    """Backbones and benchmarks for several runs in one process, each loaded once."""

    def __init__(self, configs: Sequence[RunConfig] | None = None) -> None:
        """`configs`: one for each job that will be prepared, so that nothing is kept after its last use.

        None: the jobs are not known. Then backbones of KEPT bytes together are kept, the last ones used.
        """
        self.left = None if configs is None else Counter(map(_backbone_key, configs))
        self.backbones: dict[tuple[object, ...], Backbone] = {}
        self.fingerprints: dict[tuple[object, ...], str] = {}
        self.benchmarks: dict[str, tuple[Benchmark, list[found.Record]]] = {}
        self.told: set[str] = set()
        self.notes: dict[str, list[str]] = {}  # a strategy's settings -> what has no effect there, but on another one

    def backbone(self, wanted: RunConfig, borrowed: bool = False) -> tuple[Backbone, str]:
        """The backbone and its fingerprint: a copy, because it may be trained, unless it is only `borrowed`."""
        key = _backbone_key(wanted)
        kept = self.backbones.pop(key, None)
        if kept is None:
            kept = load_backbone(wanted.backbone, wanted.weights, wanted.image_size)
            self.fingerprints[key] = kept.fingerprint()
        if borrowed:
            self.backbones[key] = kept
        if borrowed or self._last_use(key, kept):  # no second copy in memory
            return kept, self.fingerprints[key]
        self.backbones[key] = kept
        return copy.deepcopy(kept), self.fingerprints[key]

    def _last_use(self, key: tuple[object, ...], backbone: Backbone) -> bool:
        if self.left is not None:
            self.left[key] -= 1
            return self.left[key] <= 0
        sizes = {other: size_of(each) for other, each in self.backbones.items()}
        for oldest in list(sizes):
            if sum(sizes.values()) + size_of(backbone) > KEPT:
                del sizes[oldest], self.backbones[oldest]
        return size_of(backbone) > KEPT

    def benchmark(self, wanted: RunConfig, scenario: Any, side: int) -> tuple[Benchmark, list[found.Record]]:
        """The scenario's benchmark with images of at least `side` pixels, and what was found for it."""
        name, order_seed = plugins.short_name(wanted.scenario), effects.for_seed(scenario, wanted.seed).order_seed
        fields = wanted.scenario_fields | {"order_seed": order_seed}
        key = json.dumps([wanted.scenario, fields, str(wanted.data_dir), side, wanted.validation], sort_keys=True)
        kept = self.benchmarks.pop(key, None)
        if kept is None:
            data = DataAccess(wanted.data_dir, config.cache_dir(), side)
            with checked.blamed({f"scenario {name!r}": scenario}, RequestError):
                made = effects.made(scenario, data, wanted.seed, defaults(type(scenario)), name)
            if wanted.validation is not None:
                made = validated(made, wanted.validation)
            kept = made, found.record(made, data.found)
        self.benchmarks[key] = kept
        if len(self.benchmarks) > MOST_BENCHMARKS:
            del self.benchmarks[next(iter(self.benchmarks))]  # the one that was not used for longest
        return kept

    def refuse_unused(self, job: "Job", request: Sequence[RunConfig]) -> None:
        """Raises RequestError for a field that is given and that no strategy uses, once for each strategy's setting."""
        key = _settings(job.config)
        if key not in self.notes:
            self.notes[key] = unused.refuse(job, request, type(job).prepare)

    def tell(self, job: "Job") -> None:
        """Print what was found, once for each data set, and what has no effect on a strategy or is not there for it."""
        strategy, (first, *others) = plugins.short_name(job.config.strategy), found.lines(job.records)
        texts = ["\n".join([f"{job.directory.parts[-3]}: {first}", *others])]
        texts += [f"{strategy}: {text}" for text in job.strategy.lacks(job.benchmark.info)]
        texts += self.notes.get(_settings(job.config), [])
        for text in texts:
            if text not in self.told:
                self.told.add(text)
                console.tell(text)


def _settings(wanted: RunConfig) -> str:
    return repr((wanted.strategy, wanted.strategy_fields, wanted.parts))


def size_of(backbone: Backbone) -> int:
    """The bytes of a backbone's parameters."""
    return sum(parameter.nbytes for tower in backbone.towers() for parameter in tower.parameters())


def _backbone_key(wanted: RunConfig) -> tuple[object, ...]:
    return wanted.backbone, wanted.weights, wanted.image_size
