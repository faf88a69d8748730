"""The README's tables of everything that can be tuned on a frozen transformer, side by side.

    python tests/benchmarks/tables.py --data-dir DATA [--out runs/tables] [--only lora,ssf] [--table transfer|split]
                                      [--tune] [--jobs 2]

transfer: CIFAR-100 from 1000 training images, 20 epochs, tested on all test images after the last epoch. Of three
learning rates, the strategy's default and a third and three times of it, the best is chosen as by `clsim tune`: with
the first seed, on a fifth of the training images. ncm, which trains nothing and so has no rate to choose, is what the
others have to beat.
split: Split CIFAR-100 with 50 training and 20 test images a class, every strategy at its defaults; with --tune, its
rate is chosen in the same way, on the first three experiences.

Finished runs are read back, so that an interrupted call goes on when it is repeated. Strategies that are not there, and
runs that fail, have a row that says so. Progress goes to standard error, the tables, in Markdown, to standard output.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsim import config, plugins, tuning
from clsim.engines import many
from clsim.errors import RequestError, RunFailed
from clsim.field_values import field_types, make
from clsim.listing import size_text
from clsim.metrics import mean_and_interval
from clsim.results import Run

TUNERS = (
    *("linear", "partial", "mlp", "finetune", "bias", "tinytl", "adapter", "side", "vpt_shallow", "vpt_deep"),
    *("prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2", "lora", "ssf"),
)
UNTRAINED = ("ncm",)
STREAM_ONLY = ("dualprompt", "coda_prompt", "l2p", "s_prompts", "er", "joint")
RATES = (1 / 3, 1.0, 3.0)  # times the strategy's own
TRANSFER = {"scenario": "transfer", "scenario.table": "cifar100", "scenario.train": "1000"}
SPLIT = {"scenario": "split_cifar100", "scenario.train_per_class": "50", "scenario.test_per_class": "20"}
Row = dict[str, str]  # heading -> cell


@dataclass(frozen=True)
class Method:
    """A row of a table: a strategy with some of its fields."""

    strategy: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it would be written on the command line."""
        return " ".join([self.strategy, *(f"{name}={value}" for name, value in self.fields.items())])

    @property
    def rates(self) -> dict[str, str]:
        """The field of its learning rate with the values that are tried, ascending; empty if it takes no steps."""
        cls = plugins.load("strategies", self.strategy)
        made = make(cls, self.fields, self.strategy)
        if not made.has_gradients:
            return {}
        name = "lr_base" if "lr_base" in field_types(cls) else "lr"
        return {name: "|".join(f"{factor * getattr(made, name):.2g}" for factor in RATES)}


@dataclass(frozen=True)
class Bench:
    """Runs with options and fields in common."""

    options: Mapping[str, Any]
    fields: Mapping[str, str]
    runner: tuning.Runner
    plan: tuning.Plan | None  # how rates are chosen; None: they are the defaults

    def row(self, method: Method, known: Iterable[str], figures: Sequence[str]) -> Row:
        """The method's row, or one that says why there is none."""
        name = {"": f"`{method.label}`"}
        if method.strategy not in known:
            return name | {"note": "skipped: there is no such strategy yet"}
        try:
            runs, chosen = self.runs(method)
        except (RequestError, RunFailed) as error:
            return name | {"note": f"no result: {error}"}
        cells = {heading: f"{float(value):.1e}" for heading, value in chosen.items()}
        return name | cells | {figure: cell(runs, figure) for figure in figures} | costs(runs)

    def runs(self, method: Method) -> tuple[list[Run], dict[str, str]]:
        """The runs, read back where they are finished, and the rate that was chosen; the lower one of equals.

        Raises RequestError or RunFailed.
        """
        options = {**self.options, "strategy": method.strategy}
        fields = {**self.fields, **method.fields}
        rates = {} if self.plan is None else method.rates
        if self.plan is None or not rates:
            configs, chosen = config.plan(options, fields), dict[str, str]()
        else:
            (tuned,) = tuning.tune(options, fields | rates, self.plan, self.runner)
            print(tuning.table(tuned), file=sys.stderr, flush=True)
            configs, chosen = tuning.chosen_runs(options, fields | rates, [tuned]), tuned.chosen.setting
        made = [run for run in self.runner(configs) if isinstance(run, Run)]
        if len(made) < len(configs):
            raise RunFailed(f"{len(configs) - len(made)} of {len(configs)} runs failed")
        return made, chosen


def cell(runs: Sequence[Run], figure: str) -> str:
    """Mean and 95 % interval of a metric over the seeds, in %."""
    values = [value for run in runs if (value := run.metrics[figure]) is not None]
    if not values:
        return "-"
    mean, half = mean_and_interval(values)
    return f"{100 * mean:.1f}" if half is None else f"{100 * mean:.1f} ± {100 * half:.1f}"


def costs(runs: Sequence[Run]) -> Row:
    """What the runs cost: counts of the first, which all share, and the means of what was measured."""
    cost = runs[0].summary["cost"]
    speeds = [speed for run in runs if (speed := run.summary["cost"]["images_per_second"]) is not None]
    peak = sum(run.summary["cost"]["peak_memory_bytes"] for run in runs) / len(runs)
    return {
        "trainable parameters": f"{cost['trainable_parameters']:,}",
        "% of backbone": f"{100 * cost['trainable_parameters'] / cost['backbone_parameters']:.3g}",
        "stored per experience": size_text(cost["stored_bytes_per_experience"]),
        "training images/s": f"{sum(speeds) / len(speeds):,.0f}" if speeds else "-",
        "peak memory": size_text(peak),
    }


def markdown(rows: Sequence[Row]) -> str:
    """The rows under every heading that one of them has; best accuracy first, rows without result last."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    score = [
        float(row["average_accuracy"].split()[0]) if row.get("average_accuracy", "-") != "-" else -1 for row in rows
    ]
    ordered = [rows[i] for i in sorted(range(len(rows)), key=lambda i: -score[i])]
    lines = [[heading.replace("_", " ") for heading in headings], ["---"] * len(headings)]
    lines += [[row.get(heading, "").replace("|", "\\|") for heading in headings] for row in ordered]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def transfer(common: Mapping[str, Any], runner: tuning.Runner, only: Sequence[str]) -> str:
    """The first table."""
    options, fields = parted({**TRANSFER, "epochs": "20"})
    bench = Bench({**common, **options}, fields, runner, tuning.Plan("all"))
    names = [name for name in (*TUNERS, *UNTRAINED) if not only or name in only]
    return markdown([bench.row(Method(name), plugins.names("strategies"), ["average_accuracy"]) for name in names])


def split(common: Mapping[str, Any], runner: tuning.Runner, only: Sequence[str], epochs: int, tune: bool) -> str:
    """The second table."""
    options, fields = parted({**SPLIT, "epochs": str(epochs)})
    bench = Bench({**common, **options}, fields, runner, tuning.Plan() if tune else None)
    methods = [
        Method("er", {"memory": "10", "per_class": "true"}) if name == "er" else Method(name)
        for name in (*TUNERS, *UNTRAINED, *STREAM_ONLY)
    ]
    methods.append(Method("finetune", {"mask": "current"}))  # the mask under which prompt pools learn
    chosen = [method for method in methods if not only or method.strategy in only]
    figures = ["average_accuracy", "forgetting", "average_incremental_accuracy", "learning_accuracy"]
    return markdown([bench.row(method, plugins.names("strategies"), figures) for method in chosen])


def parted(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options of the command among some settings, and the fields."""
    options = {name: value for name, value in settings.items() if name in config.OPTIONS}
    return options, {name: value for name, value in settings.items() if name not in options}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, run what is not finished, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where data sets lie (default: CLSIM_DATA_DIR, else the Hub)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="run directories (default %(default)s)")
    parser.add_argument("--only", default="", help="strategies, with commas (default: all)")
    parser.add_argument("--table", choices=("transfer", "split"), help="one of the tables (default: both)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, with commas (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of the split table (default %(default)s)")
    parser.add_argument("--backbone", default="vit_micro", help="pretrained transformer (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates of the split table, too")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default %(default)s)")
    options = parser.parse_args(argv)
    names = ("data_dir", "out", "backbone", "threads")
    common = {name: getattr(options, name) for name in names} | {"seed": options.seeds}
    runner = tuning.runner(many.How(jobs=options.jobs), lambda text: print(text, file=sys.stderr, flush=True))
    only = [name for name in options.only.split(",") if name]
    rows = (*TUNERS, *UNTRAINED, *STREAM_ONLY)
    for name in only:
        if name not in rows:
            parser.error(f"--only {name}: the tables have {', '.join(rows)}")
    if options.table != "split":
        print(f"Transfer to CIFAR-100, seeds {options.seeds}:\n\n{transfer(common, runner, only)}\n", flush=True)
    if options.table != "transfer":
        table = split(common, runner, only, options.epochs, options.tune)
        print(f"Split CIFAR-100, {options.epochs} epochs, seeds {options.seeds}:\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
