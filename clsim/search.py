"""Search: fields with several values, and which of their settings are tried."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsim import grids, rng
from clsim.errors import RequestError

RANGE = re.compile(r"([-+\d.eE]+?)\.\.([-+\d.eE]+)")
LOG_FROM = 10.0  # a range whose ends are positive and differ by this factor or more is searched on a logarithmic scale
SEARCHES = ("grid", "random", "tpe")
Setting = dict[str, str]  # field -> value, as on the command line


@dataclass(frozen=True)
class Values:
    """A field that has one of some values: ``a|b|c``."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A field that has a number between two: ``1e-4..1e-1``; a whole number if both ends are: ``1..8``."""

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether each factor is as likely as any other, and not each difference."""
        return not self.whole and self.low > 0 and self.high >= LOG_FROM * self.low

    def at(self, share: float) -> str:
        """The number at a share of the range, 0 to 1."""
        if self.whole:
            return str(min(int(self.low + share * (self.high - self.low + 1)), int(self.high)))
        if self.log:
            return f"{math.exp(math.log(self.low) + share * math.log(self.high / self.low)):.3g}"
        return f"{self.low + share * (self.high - self.low):.3g}"


Space = dict[str, Values | Range]


def space(fields: Mapping[str, str]) -> tuple[Space, dict[str, str]]:
    """The fields that are searched, and those that have one value. Raises RequestError for a value without sense."""
    searched: Space = {}
    fixed: dict[str, str] = {}
    for name, value in fields.items():
        if values := grids.values_of(value):
            if not all(values):
                raise RequestError(f"{name}={value} has an empty value")
            searched[name] = Values(tuple(values))
        elif ends := RANGE.fullmatch(value):
            searched[name] = _range(name, value, ends[1], ends[2])
        else:
            fixed[name] = value
    return searched, fixed


def _range(name: str, value: str, low: str, high: str) -> Range:
    try:
        found = Range(float(low), float(high), all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high)))
    except ValueError as error:
        raise RequestError(f"{name}={value} is no range: write it as 1e-4..1e-1") from error
    if not (found.low < found.high and math.isfinite(found.high - found.low)):
        raise RequestError(f"{name}={value}: the first number of a range is the smaller one")
    return found


def grid(searched: Space) -> list[Setting]:
    """Every combination of values, the last field varying fastest. Raises RequestError for a range."""
    for name, each in searched.items():
        if isinstance(each, Range):
            raise RequestError(f"a grid needs the values of {name}: write {name}=a|b|c, or use --search random or tpe")
    values = [each.values for each in searched.values() if isinstance(each, Values)]
    return [dict(zip(searched, chosen, strict=True)) for chosen in itertools.product(*values)]


def drawn(searched: Space, trials: int, seed: int) -> list[Setting]:
    """At most `trials` settings at random, each once (Bergstra and Bengio 2012); the first ones do not depend on how
    many are drawn.
    """
    found: dict[tuple[str, ...], Setting] = {}
    for trial in range(trials):
        draw = np.random.default_rng(rng.derive(seed, "tuning", trial))
        setting = {name: _drawn(each, float(draw.random())) for name, each in searched.items()}
        found.setdefault(tuple(setting.values()), setting)
    return list(found.values())


def _drawn(each: Values | Range, share: float) -> str:
    return each.at(share) if isinstance(each, Range) else each.values[int(share * len(each.values))]


class TPE:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011): each setting depends on the scores before it.

    The same scores lead to the same settings. So a search that was interrupted is repeated from its start, and finds
    its finished runs where they are; there is no other state. Which trials may end early is said by Optuna's median
    pruner (Golovin et al. 2017), from the sixth trial on. Raises RequestError if Optuna is not installed.
    """

    def __init__(self, searched: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise RequestError("--search tpe needs Optuna: pip install 'clsim[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=rng.derive(seed, "tuning") % 2**32)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._states = optuna.trial.TrialState
        self._space = searched
        self._trial: Any = None
        self._reported = 0  # accuracies of the last setting that the study knows

    def setting(self) -> Setting:
        """The next setting."""
        self._trial, self._reported = self._study.ask(), 0
        return {name: self._suggested(name, each) for name, each in self._space.items()}

    def _suggested(self, name: str, each: Values | Range) -> str:
        if isinstance(each, Values):
            return str(self._trial.suggest_categorical(name, each.values))
        if each.whole:
            return str(self._trial.suggest_int(name, int(each.low), int(each.high)))
        return f"{self._trial.suggest_float(name, each.low, each.high, log=each.log):.3g}"

    def hopeless(self, accuracies: Sequence[float]) -> bool:
        """Whether the last setting's best accuracy so far is below the median of the earlier ones' at this experience.

        `accuracies`: after each experience so far.
        """
        for experience, accuracy in enumerate(accuracies, start=1):
            if experience > self._reported:
                self._trial.report(accuracy, experience)
        self._reported = len(accuracies)
        return bool(self._trial.should_prune())

    def tell(self, score: float | None, accuracies: Sequence[float] = (), ended: bool = False) -> None:
        """The last setting's score, None if it failed, and its accuracies; `ended`: it was hopeless."""
        if accuracies:
            self.hopeless(accuracies)
        if ended:
            self._study.tell(self._trial, state=self._states.PRUNED)
        elif score is None:
            self._study.tell(self._trial, state=self._states.FAIL)
        else:
            self._study.tell(self._trial, score)


def best(scores: Sequence[float | None]) -> int:
    """The place of the highest score; the first of equals. Raises RequestError if there is none."""
    known = [place for place, score in enumerate(scores) if score is not None]
    if not known:
        raise RequestError("no setting could be trained: see the failures above")
    return max(known, key=lambda place: (scores[place], -place))
