"""The README's tables of everything that can be tuned on a frozen transformer, side by side.

    python tests/benchmarks/tables.py --data-dir DATA [--out runs/tables] [--only lora,ssf] [--table transfer|split]

transfer: CIFAR-100 from 1000 training images, 20 epochs. Three learning rates, the strategy's default and a third and
three times of it, are tried with seed 0 on 800 of these images and compared on the other 200; the best one is then
trained on all 1000 with each seed, and tested on all test images after the last epoch. ncm, which trains nothing and so
has no rate to choose, is what the others have to beat.
split: Split CIFAR-100 with 50 training and 20 test images a class, every strategy at its defaults.

Finished runs are read back, so that an interrupted call goes on when it is repeated. Strategies that are not there, and
runs that fail, have a row that says so. Progress goes to standard error, the tables, in Markdown, to standard output.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsim import config, plugins
from clsim.config import RunConfig
from clsim.errors import RequestError, RunFailed
from clsim.listing import size_text
from clsim.metrics import mean_and_interval
from clsim.results import Run, load
from clsim.runner import run_one

TUNERS = (
    *("linear", "partial", "mlp", "finetune", "bias", "tinytl", "adapter", "side", "vpt_shallow", "vpt_deep"),
    *("prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2", "lora", "ssf"),
)
UNTRAINED = ("ncm",)
STREAM_ONLY = ("dualprompt", "coda_prompt", "l2p", "s_prompts", "er", "joint")
RATES = (1 / 3, 1.0, 3.0)  # times the strategy's own
TRANSFER = {"scenario": "transfer", "scenario.table": "cifar100", "scenario.train": 1000}
SPLIT = {"scenario": "split_cifar100", "scenario.train_per_class": 50, "scenario.test_per_class": 20}
Row = dict[str, str]  # heading -> cell


@dataclass(frozen=True)
class Method:
    """A row of a table: a strategy with some of its fields."""

    strategy: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it would be written on the command line."""
        return " ".join([self.strategy, *(f"{name}={value}".lower() for name, value in self.fields.items())])


@dataclass(frozen=True)
class Bench:
    """Runs with options in common."""

    options: Mapping[str, Any]
    seeds: Sequence[int]

    def plan(self, method: Method, seeds: Sequence[int], fields: Mapping[str, Any]) -> list[RunConfig]:
        """A run for each seed. Raises RequestError."""
        every = {**self.options, **method.fields, **fields, "strategy": method.strategy, "seed": list(seeds)}
        known = {name: every.pop(name) for name in config.OPTIONS if name in every}
        return config.plan(known, every)

    def runs(self, method: Method, seeds: Sequence[int], **fields: Any) -> list[Run]:
        """The runs with these fields, read back where they are finished. Raises RequestError or RunFailed."""
        found = []
        for wanted in self.plan(method, seeds, fields):
            began = f"{wanted.scenario} {method.label} seed {wanted.seed}"
            print(began, *(f"{name}={value}" for name, value in fields.items()), file=sys.stderr, flush=True)
            found.append(load(run_one(wanted)))
        return found

    def row(self, method: Method, known: Iterable[str], figures: Sequence[str], tune: bool) -> Row:
        """The method's row, or one that says why there is none."""
        name = {"": f"`{method.label}`"}
        if method.strategy not in known:
            return name | {"note": "skipped: there is no such strategy yet"}
        try:
            chosen = self.best_rate(method) if tune else {}
            runs = self.runs(method, self.seeds, **chosen)
        except (RequestError, RunFailed) as error:
            return name | {"note": f"no result: {error}"}
        cells = {heading: f"{value:.1e}" for heading, value in chosen.items()}
        return name | cells | {figure: cell(runs, figure) for figure in figures} | costs(runs)

    def best_rate(self, method: Method) -> dict[str, float]:
        """The learning rate that does best on held-out training images with seed 0; the lower one of equals."""
        default = self.plan(method, [0], {})[0].strategy_fields["lr"]
        tried: dict[float, float] = {}
        for rate in (float(f"{factor * default:.2g}") for factor in RATES):
            try:
                (run,) = self.runs(method, [0], lr=rate, **{"scenario.split": "tune"})
            except RunFailed as error:  # a rate at which the loss is not finite cannot be chosen
                print(f"  lr={rate:.1e}: {error}", file=sys.stderr)
                continue
            tried[rate] = run.metrics["average_accuracy"] or 0.0
        if not tried:
            raise RunFailed("none of the learning rates works")
        return {"lr": max(tried, key=lambda rate: (tried[rate], -rate))}


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


def transfer(common: Mapping[str, Any], seeds: Sequence[int], only: Sequence[str]) -> str:
    """The first table."""
    bench, known = Bench({**common, **TRANSFER, "epochs": 20}, seeds), plugins.names("strategies")
    names = [name for name in (*TUNERS, *UNTRAINED) if not only or name in only]
    figures = ["average_accuracy"]
    return markdown([bench.row(Method(name), known, figures, tune=name not in UNTRAINED) for name in names])


def split(common: Mapping[str, Any], seeds: Sequence[int], only: Sequence[str], epochs: int) -> str:
    """The second table."""
    bench, known = Bench({**common, **SPLIT, "epochs": epochs}, seeds), plugins.names("strategies")
    methods = [
        Method("er", {"memory": 10, "per_class": True}) if name == "er" else Method(name)
        for name in (*TUNERS, *UNTRAINED, *STREAM_ONLY)
    ]
    methods.append(Method("finetune", {"mask": "current"}))  # the mask under which prompt pools learn
    chosen = [method for method in methods if not only or method.strategy in only]
    figures = ["average_accuracy", "forgetting", "average_incremental_accuracy", "learning_accuracy"]
    return markdown([bench.row(method, known, figures, tune=False) for method in chosen])


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
    options = parser.parse_args(argv)
    common = {name: getattr(options, name) for name in ("data_dir", "out", "backbone", "threads")}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    only = [name for name in options.only.split(",") if name]
    rows = (*TUNERS, *UNTRAINED, *STREAM_ONLY)
    for name in only:
        if name not in rows:
            parser.error(f"--only {name}: the tables have {', '.join(rows)}")
    if options.table != "split":
        print(f"Transfer to CIFAR-100, seeds {options.seeds}:\n\n{transfer(common, seeds, only)}\n", flush=True)
    if options.table != "transfer":
        table = split(common, seeds, only, options.epochs)
        print(f"Split CIFAR-100, {options.epochs} epochs, seeds {options.seeds}:\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
