"""The command line: `clsim run | tune | list | show | compare | report | verify | pretrain | cache`.

Heavy packages are imported only when a command needs them: `--help`, `list` and `show` import no torch and no NumPy.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clsim import openmp
from clsim.errors import RequestError, RunFailed, unknown
from clsim.options import ENGINES, OPTIONS, flag, require_utf8
from clsim.terminal import forgiving
from clsim.version import VERSION

if TYPE_CHECKING:
    from clsim import known
    from clsim.engines import many
    from clsim.results import Run

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

FIELDS_HELP = "x=1 or --x 1 sets a field of the strategy, l2p.x=1 of one among several, scenario.x=1 of the scenario"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 mistake in the request, 130 interrupted."""
    forgiving(sys.stdout)
    openmp.let_threads_sleep()
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except RequestError as error:
        print(f"clsim: error: {_one_line(error)}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:  # `clsim list | head` closes the pipe early; Python must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError as error:
        print(f"clsim: failed: there is not enough memory {_one_line(error)}".rstrip(), file=sys.stderr)
        return FAILED
    except (RunFailed, OSError) as error:  # a full disk, a file that may not be read
        print(f"clsim: failed: {_one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("clsim: interrupted; repeat the same command to resume", file=sys.stderr)
        if argv is None:  # a program of its own: taking down the interpreter may take seconds, and changes the status
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# arguments


class _Parser(argparse.ArgumentParser):
    """A parser that raises RequestError for mistakes, and that has its options by name."""

    def __init__(self, **settings: Any) -> None:
        self.known: list[str] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.known += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of `clsim`, and the parsers of its commands."""
    top = _Parser(prog="clsim", description="Continual learning and domain adaptation on frozen transformers.")
    top.add_argument("--version", action="version", version=f"clsim {VERSION}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(name: str, what: str) -> _Parser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")

    run = command("run", "run strategies on a scenario; repeat the command to continue an interrupted run")
    _add_options(run, OPTIONS)
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
    listing = command("list", "list scenarios, strategies, parts and backbones")
    listing.add_argument("section", nargs="?", metavar="scenarios|strategies|parts|backbones")
    show = command("show", "describe a strategy, scenario, part or backbone, with its fields and presets")
    show.add_argument("name", metavar="NAME")
    compare = command("compare", "compare finished runs in a table, with the mean over seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    compare.add_argument("--format", choices=("table", "md", "csv"), default="table")
    plot = "plot accuracy against trainable parameters; also for TensorBoard, in the folder FILE without .png"
    compare.add_argument("--plot", metavar="FILE.png", help=plot)
    report = command("report", "write finished runs as one HTML file, with tables and pictures, for a browser")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    report.add_argument("--out", metavar="FILE.html", default="report.html", help="the file (default report.html)")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--watch", action="store_true", help="write it again every few seconds, until Ctrl-C")
    verify = command("verify", "check every file of runs against its checksum; exit status 1 if one is broken")
    verify.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that contain some")
    pretrain = command("pretrain", "train a bundled backbone again from public images")
    pretrain.add_argument("name", metavar="NAME")
    pretrain.add_argument("--data-dir", metavar="DIR", help="folder of the data sets (default: CLSIM_DATA_DIR)")
    pretrain.add_argument("--out", metavar="DIR", help="checkpoints and weights go to DIR/pretrain/NAME (default runs)")
    pretrain.add_argument("--threads", metavar="N", help="CPU threads")
    pretrain.add_argument("fields", nargs="*", metavar="field=value", help="fields of the recipe")
    cache = command("cache", "show the contents of the cache of decoded images and features")
    cache.add_argument("--clear", action="store_true", help="empty it")
    cache.add_argument(
        "--verify", action="store_true", help="read all of it; set what is broken aside, to be made again"
    )
    return top, commands.choices


def _add_options(parser: _Parser, names: Iterable[str]) -> None:
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


def _dispatch(argv: list[str]) -> int:
    top, parsers = _parsers()
    for argument in argv:
        require_utf8("an argument", argument)
    if not argv:
        top.print_help()
        return DONE
    name, *rest = argv
    try:
        if name not in parsers:
            if name.startswith("-"):
                top.parse_args(argv)  # --help and --version end here
            raise unknown("command", name, parsers)
        rest, fields = _apart(rest, parsers[name]) if name in ("run", "tune") else (rest, [])
        # intermixed: fields may be anywhere among the options
        given, left = parsers[name].parse_known_intermixed_args(rest)
        if fields:
            given.fields += fields
    except SystemExit as end:
        return DONE if end.code is None else int(end.code)
    if left:
        option = left[0].partition("=")[0]
        if option.startswith("--"):
            raise unknown("option", option, parsers[name].known)
        raise RequestError(f"clsim {name} does not take {left[0]!r}")
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "tune": _tune,
        "list": _list,
        "show": _show,
        "compare": _compare,
        "report": _report,
        "verify": _verify,
        "pretrain": _pretrain,
        "cache": _cache,
    }
    return actions[name](given)


def _apart(arguments: Sequence[str], parser: _Parser) -> tuple[list[str], list[str]]:
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


# commands that run


def _run(given: argparse.Namespace) -> int:
    from clsim import config, known, listing  # late, like the imports below: NumPy

    listing.tidy_cache(config.cache_dir())
    engine = _engine(given)
    options = {name: getattr(given, name) for name in OPTIONS}
    asked = known.request(options | engine, given.fields, given.config)
    runs = None if given.fresh or given.dry_run else known.find(asked)
    failed: list[many.Failed] = []
    if runs is None:
        runs, failed = _made(given, options, engine, asked)
    elif not given.quiet:
        known.show(runs, tables=not engine)
    if len(runs) > 1 or (runs and engine):
        from clsim import compare

        print(compare.report([run.directory for run in runs]))
    if failed:
        names = ", ".join(each.name for each in failed)
        print(f"clsim: failed: {len(failed)} of {len(runs) + len(failed)} runs: {names}", file=sys.stderr)
    return FAILED if failed else DONE


def _engine(given: argparse.Namespace) -> dict[str, Any]:
    """The options of where runs are made, as far as they are given."""
    where = {name: getattr(given, name) for name in ENGINES}
    return {name: ENGINES[name](value, f"--{name}") for name, value in where.items() if value is not None}


def _made(
    given: argparse.Namespace, options: dict[str, Any], where: dict[str, Any], asked: "known.Request | None"
) -> "tuple[list[Run], list[many.Failed]]":
    """The finished runs of a request, and what has failed; `where`: the engine that is asked for."""
    from clsim import config, known

    configs = config.plan(options, given.fields, None if given.config is None else Path(given.config))
    from clsim import runner  # late: torch, which a mistake in the request does not need
    from clsim.engines import many

    engine = many.How(**where).engine(configs)
    if engine is not None:
        configs = many.with_threads(configs, engine)
    how = {"fresh": given.fresh, "quiet": given.quiet}
    if engine is None or given.dry_run:
        runs, failed = runner.run_all(configs, **how, dry_run=given.dry_run), list[many.Failed]()
    else:
        runs, failed = many.run_all(configs, engine, **how)
    if not failed and not given.dry_run:
        known.keep(asked, configs, runs)
    return runs, failed


def _tune(given: argparse.Namespace) -> int:
    from clsim import compare, options, tuning
    from clsim.engines import many
    from clsim.field_values import split_field
    from clsim.results import Run

    trials = options.at_least(1, int)(given.trials, "--trials")
    experiences = options.first_experiences(given.tune_experiences, "--tune-experiences") or "all"
    plan = tuning.Plan(experiences, given.search, trials)
    asked = {name: getattr(given, name, None) for name in OPTIONS}
    fields = dict(map(split_field, given.fields))
    run = tuning.runner(many.How(**_engine(given)), say=print)
    found = tuning.tune(asked, fields, plan, run)
    for each in found:
        print(tuning.table(each))
    configs = tuning.chosen_runs(asked, fields, found)
    for each in found:
        if each.trials:
            print(f"tried: {tuning.record(each, configs, asked, fields)}")
    made = [each if isinstance(each, Run) else None for each in run(configs)]
    runs = [each for each in made if each is not None]
    for text in tuning.without_note(configs, made):
        print(f"clsim: {text}", file=sys.stderr)
    print(compare.report([each.directory for each in runs]))
    return DONE if len(runs) == len(configs) else FAILED


def _pretrain(given: argparse.Namespace) -> int:
    from clsim.field_values import split_field

    fields = dict(map(split_field, given.fields))
    threads = None if given.threads is None else OPTIONS["threads"].checker(given.threads, "threads")
    data_dir = given.data_dir or os.environ.get("CLSIM_DATA_DIR")
    from clsim import pretrain

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    pretrain.main(
        given.name,
        data_dir=None if data_dir is None else Path(data_dir).expanduser(),
        out=Path(given.out or "runs").expanduser(),
        fields=fields,
    )
    return DONE


def _compare(given: argparse.Namespace) -> int:
    from clsim import compare

    runs = [Path(run) for run in given.runs]
    if given.plot is not None and not given.plot.endswith(".png"):
        raise RequestError(f"--plot {given.plot}: the picture is a PNG, so its name ends in .png")
    print(compare.report(runs, given.format))
    if given.plot is not None:
        from clsim.recorders import comparison  # late: matplotlib

        comparison.draw(compare.group(compare.find(runs)[0]), Path(given.plot))
    return DONE


def _report(given: argparse.Namespace) -> int:
    from clsim.recorders import report

    runs, out = [Path(run) for run in given.runs], Path(given.out).expanduser()
    report.write(runs, out, report.SECONDS if given.watch else 0)
    print(out, flush=True)
    if given.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    if given.watch:
        report.watch(runs, out)
    return DONE


# commands that read


def _list(given: argparse.Namespace) -> int:
    from clsim import listing

    print(listing.names(given.section, plain=not sys.stdout.isatty()))
    return DONE


def _show(given: argparse.Namespace) -> int:
    from clsim import listing

    print(listing.about(given.name))
    return DONE


def _verify(given: argparse.Namespace) -> int:
    from clsim import checksums

    text, whole = checksums.verified([Path(run) for run in given.runs])
    print(text)
    return DONE if whole else FAILED


def _cache(given: argparse.Namespace) -> int:
    from clsim import config, listing

    folder = config.cache_dir()
    if given.verify:
        text, whole = listing.verify_cache(folder)
        print(text)
        return DONE if whole else FAILED
    print(listing.clear_cache(folder) if given.clear else listing.cache(folder))
    return DONE
