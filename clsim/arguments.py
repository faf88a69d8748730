"""The command line's parsers, in the order of `clsim --help`."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from clsim.errors import RequestError
from clsim.options import OPTIONS, flag
from clsim.version import VERSION

FIELDS_HELP = "x=1 or --x 1 sets a field of the strategy, l2p.x=1 of one among several, scenario.x=1 of the scenario"


class Parser(argparse.ArgumentParser):
    """A parser that raises RequestError for mistakes, and that has its options by name."""

    def __init__(self, **settings: Any) -> None:
        self.known: list[str] = []
        self.actions: list[argparse.Action] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """As argparse's, and the argument is remembered."""
        self.known += [name for name in names if name.startswith("--")]
        self.actions.append(super().add_argument(*names, **settings))
        return self.actions[-1]

    def error(self, message: str) -> NoReturn:
        """Raises RequestError."""
        raise RequestError(message)


Command = Callable[[str, str], Parser]  # name and help -> the new parser of a command


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `clsim`, and the parsers of its commands."""
    top = Parser(prog="clsim", description="Continual learning and domain adaptation on frozen transformers.")
    top.add_argument("--version", action="version", version=f"clsim {VERSION}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(name: str, what: str) -> Parser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")

    run = command("run", "run strategies on a scenario; repeat the command to continue an interrupted run")
    _add_options(run, OPTIONS)
    what = "GPUs of this machine, or processes with --device cpu, that work on one run together (default 1)"
    run.add_argument("--devices", metavar="N", help=what)
    run.add_argument("--config", metavar="FILE.toml", help="file of options and fields; the command line overrides it")
    run.add_argument("--fresh", action="store_true", help="delete the contents of the run directory and start again")
    run.add_argument("--dry-run", action="store_true", help="check everything and show the runs without running them")
    run.add_argument("--quiet", action="store_true", help="print only errors, and the last table of several runs")
    tune = command("tune", "choose settings on validation images, then run the chosen ones with every seed")
    _add_options(tune, [name for name in OPTIONS if name not in ("validation", "note")])
    what = "experiences of the training stream on which settings are compared (default 3)"
    tune.add_argument("--tune-experiences", metavar="N|all", default="3", help=what)
    what = "how settings are tried: grid (default), random, tpe"
    tune.add_argument("--search", metavar="NAME", choices=("grid", "random", "tpe"), default="grid", help=what)
    tune.add_argument("--trials", metavar="N", default="20", help="settings of a random or TPE search (default 20)")
    _add_readers(command)
    pretrain = command("pretrain", "train a bundled backbone again from public images")
    pretrain.add_argument("name", metavar="NAME")
    pretrain.add_argument("--data-dir", metavar="DIR", help="folder of the data sets (default: CLSIM_DATA_DIR)")
    pretrain.add_argument("--out", metavar="DIR", help="checkpoints and weights go to DIR/pretrain/NAME (default runs)")
    pretrain.add_argument("--threads", metavar="N", help="CPU threads")
    pretrain.add_argument("fields", nargs="*", metavar="field=value", help="fields of the recipe")
    return top, commands.choices


def _add_readers(command: Command) -> None:
    """The commands that read what is there."""
    listing = command("list", "list scenarios, strategies, parts and backbones")
    listing.add_argument("section", nargs="?", metavar="scenarios|strategies|parts|backbones")
    show = command("show", "describe a strategy, scenario, part or backbone, with its fields and presets")
    show.add_argument("name", metavar="NAME")
    runs = command("runs", "list the runs of a folder: their states, how far they are, and their accuracies")
    runs.add_argument("folders", nargs="*", metavar="FOLDER", help="folders that contain runs (default runs)")
    runs.add_argument("--format", choices=("table", "csv", "json"), default="table")
    compare = command("compare", "compare finished runs in a table, with the mean over seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    compare.add_argument("--format", choices=("table", "md", "csv", "json"), default="table")
    compare.add_argument("--long", action="store_true", help="with csv and json: a row for each run, not for each mean")
    plot = "plot accuracy against trainable parameters; also for TensorBoard, in the folder FILE without .png"
    compare.add_argument("--plot", metavar="FILE.png", help=plot)
    report = command("report", "write finished runs as one HTML file, with tables and pictures, for a browser")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    report.add_argument("--out", metavar="FILE.html", default="report.html", help="the file (default report.html)")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--watch", action="store_true", help="write it again every few seconds, until Ctrl-C")
    verify = command("verify", "check every file of runs against its checksum; exit status 1 if one is broken")
    verify.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    what = "also evaluate the final learner on its test stream again, and compare the counts with the recorded ones"
    verify.add_argument("--evaluate", action="store_true", help=what)
    cache = command("cache", "show the contents of the cache of decoded images and features")
    cache.add_argument("--clear", action="store_true", help="empty it")
    cache.add_argument(
        "--verify", action="store_true", help="read all of it; set what is broken aside, to be made again"
    )
    doctor = command("doctor", "show versions, devices, caches and data sets of this machine")
    doctor.add_argument("--data-dir", metavar="DIR", help="folder of the data sets (default: CLSIM_DATA_DIR)")
    what = "print a script that completes commands, options and names in a shell"
    command("completion", what).add_argument("shell", choices=("bash", "zsh", "fish"))


def _add_options(parser: Parser, names: Iterable[str]) -> None:
    """The options of a run with these names, and what is the same for all commands that run."""
    for name in names:
        each = OPTIONS[name]
        action = "append" if name == "with" else "store"  # `--with A --with B` is `--with A,B`
        parser.add_argument(flag(name), action=action, metavar=each.metavar, help=each.help)
    what = "runs at the same time, in processes of this machine (default 1)"
    parser.add_argument("--jobs", metavar="N|auto", help=what)
    what = "runs on a Ray cluster (default: a local one)"
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=what)
    what = "each run is a SLURM job: partition=gpu,time=4:00:00"
    parser.add_argument("--slurm", metavar="NAME=VALUE,...", help=what)
    parser.add_argument("fields", nargs="*", metavar="field=value", help=FIELDS_HELP)


def apart(arguments: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """Arguments in one form: fields written as options become one word, ``--top-k 3`` -> ``--top-k=3``."""
    known, fields = [], []
    needs_value = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_field = name.startswith("--") and name not in ("--", "--help", *parser.known)
        if is_field:
            fields.append(argument if equals else f"{argument}=")
        elif needs_value and not argument.startswith("--"):
            fields[-1] += argument
        else:
            known.append(argument)
        needs_value = is_field and not equals
    return known, fields
