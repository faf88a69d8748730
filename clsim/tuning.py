"""`clsim tune`: choose hyper-parameters without a test image, then run the chosen ones with every seed.

Settings are compared by their average accuracy on validation images: a fifth of the training images of the first
experiences, see `clsim.data.validation`. Every trial is a run as any other, in the folder SCENARIO.validation: it is
resumed, read back and compared as such.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from clsim import checkpoint, config, grids, plugins, pruning, search, unused
from clsim.config import RunConfig
from clsim.engines import many
from clsim.errors import RequestError, RunFailed
from clsim.field_values import field_types
from clsim.options import OPTIONS, PATHS, flag
from clsim.plugin_paths import absolute
from clsim.results import Run, load
from clsim.runner import Job, run_one
from clsim.sealed import digest
from clsim.shared import Shared

Hopeless = Callable[[Sequence[float]], bool]  # whether a trial with these accuracies is not worth going on


class Runner(Protocol):
    """Makes runs."""

    def __call__(
        self, configs: Sequence[RunConfig], hopeless: Hopeless | None = None
    ) -> Sequence[Run | pruning.Hopeless | None]:
        """Finished runs in this order; None: it failed. With `hopeless` a run may be ended early."""


@dataclass(frozen=True)
class Plan:
    """What to choose from, and how."""

    experiences: int | Literal["all"] = 3  # of the training stream
    how: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20  # of a search at random or by TPE; for each strategy the same


@dataclass(frozen=True)
class Trial:
    """A setting, and its score: the mean over the trial's runs, or None if one of them failed or was ended early."""

    setting: search.Setting
    score: float | None
    runs: tuple[str, ...]  # directories
    ended: str = ""  # why it was ended early

    def __str__(self) -> str:
        return self.ended or ("failed" if self.score is None else f"{100 * self.score:.1f} %")


@dataclass(frozen=True)
class Tuned:
    """What was tried for a strategy, and what was chosen."""

    strategy: str
    trials: tuple[Trial, ...]
    seed: int
    plan: Plan

    @property
    def chosen(self) -> Trial:
        """The trial with the highest score; the first of equals. Raises RequestError if none has one."""
        return self.trials[search.best([trial.score for trial in self.trials])]

    @property
    def note(self) -> str:
        """One sentence for the runs' notes: what was tried, and by which figure it was chosen."""
        if not self.trials:
            return ""
        which = "all" if self.plan.experiences == "all" else f"the first {self.plan.experiences}"
        tried = "; ".join(f"{_text(trial.setting)}: {trial}" for trial in self.trials)
        return (
            f"{_text(self.chosen.setting)} was chosen by {self.plan.how} search among {len(self.trials)} settings with "
            f"seed {self.seed}, by average accuracy on validation images (a fifth of the training images of {which} "
            f"experiences; no test image was used): {tried}"
        )


def _text(setting: search.Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def tune(options: Mapping[str, Any], fields: Mapping[str, str], plan: Plan, runner: Runner) -> list[Tuned]:
    """Choose a setting for each strategy of the request.

    `options` and `fields` are as for `config.plan`; a field with several values is searched: ``lr=0.01|0.1`` or
    ``lr=1e-4..1e-1``. A strategy that uses none of these fields is not tuned, and has no trials. Trials use the first
    seed. Raises RequestError.
    """
    searched, fixed = search.space(fields)
    if not searched:
        raise RequestError(
            "nothing to choose from: give a field several values, lr=0.01|0.1, or a range, lr=1e-4..1e-1"
        )
    for name in searched:
        if name.startswith("scenario."):
            raise RequestError(f"{name} belongs to the stream: its values cannot be compared by their accuracy")
    for name, value in options.items():
        if name not in PATHS and grids.values_of(value):
            text = f"write {name}=a|b" if OPTIONS[name].of_strategy else "only fields of strategies are searched"
            raise RequestError(f"{flag(name)} {value}: it has one value here; {text}")
    strategies, seed = _names(options), OPTIONS["seed"].checker(_or_default(options, "seed"), "seed")[0]
    spaces = {strategy: _own(searched, strategy, strategies, fixed) for strategy in strategies}
    if lost := searched.keys() - {name for own in spaces.values() for name in own}:
        raise RequestError(f"no strategy of this request has the field {min(lost)!r}")
    firsts, shared = config.plan(options, _first(searched) | fixed), Shared()
    for wanted in {each.strategy: each for each in firsts}.values():
        job = Job.prepare(wanted, shared, borrowed=True)
        shared.refuse_unused(job, firsts)
        without = unused.useless(wanted, job.benchmark.info)
        own = spaces[wanted.strategy]
        spaces[wanted.strategy] = {name: own[name] for name in own if _key(name) not in without}
    if lost := searched.keys() - {name for own in spaces.values() for name in own}:
        raise RequestError(f"no strategy of this request uses the field {min(lost)!r}")
    found = []
    for strategy, own in spaces.items():
        own_options = _alone_with(strategy, options) | {"seed": seed, "validation": plan.experiences}
        request = _Request(own_options, fixed)
        trials = request.trials(own, plan, seed, runner) if own else []
        found.append(Tuned(strategy, tuple(trials), seed, plan))
    return found


def chosen_runs(options: Mapping[str, Any], fields: Mapping[str, str], tuned: Sequence[Tuned]) -> list[RunConfig]:
    """The runs of every strategy, with its chosen setting, with every seed; their notes say how it was chosen."""
    _, fixed = search.space(fields)
    configs = []
    for each in tuned:
        setting = each.chosen.setting if each.trials else {}
        own = _alone_with(each.strategy, options) | {"note": each.note or options.get("note")}
        configs += config.plan(own, _of(fixed, each.strategy) | setting)
    return configs


def table(tuned: Tuned) -> str:
    """The trials, best first, as lines."""
    if not tuned.trials:
        return f"{tuned.strategy}: nothing to choose"
    ordered = sorted(tuned.trials, key=lambda trial: -1.0 if trial.score is None else trial.score, reverse=True)
    lines = [f"  {trial!s:>7}  {_text(trial.setting)}" for trial in ordered]
    title = f"{tuned.strategy}: average accuracy on validation images, {len(tuned.trials)} settings"
    return "\n".join([title, *lines, f"  chosen: {_text(tuned.chosen.setting)}"])


def without_note(configs: Sequence[RunConfig], made: Sequence[Run | None]) -> list[str]:
    """A sentence for each chosen run that was finished before, and so says nothing of this choice in its notes."""
    return [
        f"{run.directory} was finished before: its notes do not have this choice"
        for wanted, run in zip(configs, made, strict=True)
        if run is not None and run.summary["notes"].get("note") != wanted.note
    ]


def record(tuned: Tuned, configs: Sequence[RunConfig], options: Mapping[str, Any], fields: Mapping[str, str]) -> Path:
    """Write what was tried and chosen into the folder `tuning` of the chosen runs; the file, one for each request."""
    folder = configs[0].out / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: str(value) for name, value in options.items() if name not in ("strategy", *PATHS)}
    mark = digest(json.dumps([asked, dict(fields), str(tuned.plan)], sort_keys=True).encode())[:8]
    names = (plugins.short_name(configs[0].scenario), plugins.short_name(tuned.strategy), mark)
    file = folder / f"{'-'.join(names)}.json"
    content = {
        "strategy": tuned.strategy,
        "search": tuned.plan.how,
        "experiences": tuned.plan.experiences,
        "seed": tuned.seed,
        "figure": f"{pruning.FIGURE} on validation images",
        "trials": [vars(trial) for trial in tuned.trials],
        "chosen": tuned.chosen.setting if tuned.trials else None,
    }
    checkpoint.write_text(file, json.dumps(content, indent=1) + "\n")
    return file


@dataclass(frozen=True)
class _Request:
    """The trials' options and fixed fields."""

    options: dict[str, Any]
    fixed: dict[str, str]

    def trials(self, own: search.Space, plan: Plan, seed: int, runner: Runner) -> list[Trial]:
        """Every trial of the search."""
        if plan.how == "tpe":
            return self._one_by_one(own, plan, seed, runner)
        settings = search.grid(own) if plan.how == "grid" else search.drawn(own, plan.trials, seed)
        return self._together(settings, runner)

    def planned(self, setting: search.Setting) -> list[RunConfig]:
        """The runs of a trial: one, or one for each pair of domains."""
        own = _of(self.fixed, self.options["strategy"])
        return config.plan(self.options | {"note": f"trial: {_text(setting)}"}, own | setting)

    def _together(self, settings: Sequence[search.Setting], runner: Runner) -> list[Trial]:
        """Trials that do not depend on one another."""
        planned = [self.planned(each) for each in settings]
        runs = iter(runner([each for configs in planned for each in configs]))
        return [_trial(each, [next(runs) for _ in configs]) for each, configs in zip(settings, planned, strict=True)]

    def _one_by_one(self, own: search.Space, plan: Plan, seed: int, runner: Runner) -> list[Trial]:
        """Trials that are chosen by the results of those before. Repeated, they are chosen in the same way again."""
        ask = search.TPE(own, seed)
        found: list[Trial] = []
        for _ in range(plan.trials):
            setting = ask.setting()
            configs = self.planned(setting)
            runs = runner(configs, ask.hopeless) if len(configs) == 1 else runner(configs)
            trial = _trial(setting, runs)
            ask.tell(trial.score, _accuracies(runs), bool(trial.ended))
            found.append(trial)
        return list({_text(trial.setting): trial for trial in found}.values())


def _trial(setting: search.Setting, runs: Sequence[Run | pruning.Hopeless | None]) -> Trial:
    """The trial with its runs."""
    made = [run for run in runs if isinstance(run, Run)]
    scores = [score for run in made if (score := run.metrics[pruning.FIGURE]) is not None]
    complete = len(scores) == len(runs)
    ended = next((str(run) for run in runs if isinstance(run, pruning.Hopeless)), "")
    directories = tuple(str(run.directory) for run in made)
    return Trial(setting, sum(scores) / len(scores) if complete else None, directories, ended)


def _accuracies(runs: Sequence[Run | pruning.Hopeless | None]) -> Sequence[float]:
    """The accuracy after each experience of a trial with one run; empty for other trials."""
    if len(runs) != 1 or runs[0] is None:
        return ()
    return runs[0].accuracies if isinstance(runs[0], pruning.Hopeless) else pruning.accuracies(runs[0].directory)


def runner(how: many.How, say: Callable[[str], None] = lambda text: None) -> Runner:
    """A runner with an engine, or in this process. A run that fails has no result, and its failure is said.

    An engine ends no run early: its processes do not know the other trials.
    """

    def run(configs: Sequence[RunConfig], hopeless: Hopeless | None = None) -> Sequence[Run | pruning.Hopeless | None]:
        engine = how.engine(configs)
        if engine is None:
            return [_alone(each, say, hopeless) for each in configs]
        with_threads = many.with_threads(configs, engine)
        made, _ = many.run_all(with_threads, engine)  # it shows what goes on, and what fails
        found = {run.directory: run for run in made}
        return [found.get(directory) for directory in _directories(with_threads)]

    return run


def _directories(configs: Sequence[RunConfig]) -> list[Path]:
    shared = Shared()
    return [Job.prepare(each, shared, borrowed=True).directory for each in configs]


def _alone(
    wanted: RunConfig, say: Callable[[str], None], hopeless: Hopeless | None = None
) -> Run | pruning.Hopeless | None:
    """The finished run; None if it fails, e.g. at a rate at which the loss is not finite."""
    try:
        setting = (wanted.note or "not tuned").partition(" was ")[0]
        say(f"{plugins.short_name(wanted.strategy)} seed {wanted.seed}, {setting}")
        watch = None if hopeless is None else partial(pruning.Watch, hopeless=hopeless)
        return load(run_one(wanted, watch=watch))
    except pruning.Hopeless as ended:
        say(str(ended))
        return ended
    except (RequestError, RunFailed) as error:
        say(f"failed: {error}")
        return None


def _names(options: Mapping[str, Any]) -> list[str]:
    found: list[str] = OPTIONS["strategy"].checker(_or_default(options, "strategy"), "strategy")
    return [*map(absolute, found)]


def _alone_with(strategy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for one strategy of the request; a preset only if it has it."""
    preset = options.get("preset")
    has = preset in plugins.load("strategies", strategy).presets
    return dict(options) | {"strategy": strategy, "preset": preset if has else None}


def _or_default(options: Mapping[str, Any], name: str) -> Any:
    value = options.get(name)
    return OPTIONS[name].default if value is None else value


def _own(searched: search.Space, strategy: str, strategies: Sequence[str], fixed: Mapping[str, str]) -> search.Space:
    """The searched fields that a strategy has; ``l2p.top_k`` is before ``top_k``."""
    known = field_types(plugins.load("strategies", strategy))
    short = plugins.short_name(strategy)
    prefixes = {plugins.short_name(name) for name in strategies}
    own: search.Space = {}
    for name, values in searched.items():
        prefix, dot, _ = name.rpartition(".")
        if dot and prefix not in prefixes:
            raise RequestError(f"{name}: there is no strategy {prefix!r} in this request")
        if _key(name) in known and prefix in ("", short):
            own[name] = values
    single = {_key(name) for name in (*own, *fixed) if name.rpartition(".")[0] == short}
    return {name: values for name, values in own.items() if "." in name or _key(name) not in single}


def _of(fixed: Mapping[str, str], strategy: str) -> dict[str, str]:
    """The fields with one value that concern a strategy run alone."""
    known, short = field_types(plugins.load("strategies", strategy)), plugins.short_name(strategy)
    found = {}
    for name, value in fixed.items():
        prefix, _, _ = name.rpartition(".")
        if prefix in ("scenario", short) or (not prefix and _key(name) in known):
            found[name] = value
    return found


def _key(name: str) -> str:
    """The field: ``l2p.top_k`` and ``--top-k`` -> ``top_k``."""
    return name.rpartition(".")[2].removeprefix("--").replace("-", "_")


def _first(searched: search.Space) -> search.Setting:
    """One setting, to check the rest of the request with."""
    return {
        name: each.values[0] if isinstance(each, search.Values) else each.at(0.0) for name, each in searched.items()
    }
