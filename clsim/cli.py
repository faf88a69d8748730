"""The command line: `clsim run | tune | list | show | runs | compare | verify | pretrain | cache | doctor`.

Heavy packages are imported only when a command needs them: `--help`, `list` and `show` import no torch and no NumPy.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clsim import openmp
from clsim.errors import PeerLost, RequestError, RunFailed, unknown
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
        return _ended(MISTAKE, f"error: {_one_line(error)}")
    except BrokenPipeError:  # `clsim list | head` closes the pipe early; Python must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError as error:
        return _ended(FAILED, f"failed: there is not enough memory {_one_line(error)}".rstrip())
    except (RunFailed, OSError) as error:  # a full disk, a file that may not be read
        return _ended(FAILED, f"failed: {_one_line(error)}", later=isinstance(error, PeerLost))
    except KeyboardInterrupt:
        if not _rank():
            print("clsim: interrupted; repeat the same command to resume", file=sys.stderr)
        if argv is None:  # a program of its own: taking down the interpreter may take seconds, and changes the status
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED


def _ended(status: int, text: str, later: bool = False) -> int:
    """Print why the command ends; returns the status. Of torchrun's processes only one prints: it ends those that wait.

    `later`: another process knows the reason.
    """
    if _torchrun() and (later or _rank()):
        time.sleep(2.0)
    print(f"clsim: {text}", file=sys.stderr)
    if _torchrun():  # at once: taking down an interpreter with torch takes seconds
        sys.stderr.flush()
        os._exit(status)
    return status


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# arguments


class _Parser(argparse.ArgumentParser):
    """A parser that raises RequestError for mistakes, and that has its options by name."""

    def __init__(self, **settings: Any) -> None:
        self.known: list[str] = []
        self.actions: list[argparse.Action] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.known += [name for name in names if name.startswith("--")]
        self.actions.append(super().add_argument(*names, **settings))
        return self.actions[-1]

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


Command = Callable[[str, str], _Parser]  # name and help -> the new parser of a command


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of `clsim`, and the parsers of its commands."""
    top = _Parser(prog="clsim", description="Continual learning and domain adaptation on frozen transformers.")
    top.add_argument("--version", action="version", version=f"clsim {VERSION}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(name: str, what: str) -> _Parser:
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
        "runs": _runs,
        "compare": _compare,
        "verify": _verify,
        "pretrain": _pretrain,
        "cache": _cache,
        "doctor": _doctor,
        "completion": _completion,
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
    if not _torchrun():
        return _run_here(given)
    if where := _engine(given):
        raise RequestError(f"--{next(iter(where))}: torchrun has started the processes already")
    from clsim import parallel

    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.joined(_rank(), int(os.environ["WORLD_SIZE"]), "env://"))
        if _rank():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            given.quiet = True
        return _run_here(given)


def _torchrun() -> bool:
    """Whether torchrun started this process with others, to work on one run together."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _rank() -> int:
    """The number of this process among those that torchrun started; 0 for one that it did not start."""
    return int(os.environ.get("RANK", "0")) if _torchrun() else 0


def _run_here(given: argparse.Namespace) -> int:
    from clsim import config, known, listing  # late, like the imports below: NumPy

    listing.tidy_cache(config.cache_dir())
    engine = _engine(given)
    options = {name: getattr(given, name) for name in OPTIONS}
    asked = known.request(options | engine, given.fields, given.config)
    runs = None if given.fresh or given.dry_run else known.find(asked)
    failed: list[many.Failed] = []
    elsewhere = bool(engine.keys() - {"devices"})  # where no run prints its own table
    if runs is None:
        runs, failed = _made(given, options, engine, asked)
    elif not given.quiet:
        known.show(runs, tables=not elsewhere)
    if len(runs) > 1 or (runs and elsewhere):
        from clsim import compare

        print(compare.report([run.directory for run in runs]))
    if failed:
        names = ", ".join(each.name for each in failed)
        print(f"clsim: failed: {len(failed)} of {len(runs) + len(failed)} runs: {names}", file=sys.stderr)
    return FAILED if failed else DONE


def _engine(given: argparse.Namespace) -> dict[str, Any]:
    """The options of where runs are made, as far as they are given."""
    where = {name: getattr(given, name, None) for name in ENGINES}
    return {name: ENGINES[name](value, f"--{name}") for name, value in where.items() if value is not None}


def _made(
    given: argparse.Namespace, options: dict[str, Any], where: dict[str, Any], asked: "known.Request | None"
) -> "tuple[list[Run], list[many.Failed]]":
    """The finished runs of a request, and what has failed; `where`: the engine that is asked for."""
    from clsim import config, known

    configs = config.plan(options, given.fields, None if given.config is None else Path(given.config))
    from clsim import runner  # late: torch, which a mistake in the request does not need
    from clsim.engines import devices, many

    place = many.How(**where)
    engine = place.engine(configs)
    if engine is not None:
        configs = many.with_threads(configs, engine)
    how = {"fresh": given.fresh, "quiet": given.quiet}
    if place.devices > 1 and not given.dry_run:
        runs, failed = devices.run_all(configs, place.devices, **how), list[many.Failed]()
    elif engine is None or given.dry_run:
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
    print(compare.report(runs, given.format, given.long))
    if given.plot is not None:
        from clsim.recorders import comparison  # late: matplotlib

        comparison.draw(compare.group(compare.find(runs)[0]), Path(given.plot))
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


def _runs(given: argparse.Namespace) -> int:
    from clsim import inspect_runs

    print(inspect_runs.report([Path(folder) for folder in given.folders or ["runs"]], given.format))
    return DONE


def _verify(given: argparse.Namespace) -> int:
    paths = [Path(run) for run in given.runs]
    if given.evaluate:
        from clsim import reevaluation  # late: torch

        return DONE if reevaluation.report(paths) else FAILED
    from clsim import checksums

    text, whole = checksums.verified(paths)
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


def _doctor(given: argparse.Namespace) -> int:
    from clsim import doctor, options

    print(doctor.report(options.data_dir(given.data_dir, "data_dir")))
    return DONE


def _completion(given: argparse.Namespace) -> int:
    from clsim import completion

    print(completion.script(given.shell, {name: parser.actions for name, parser in _parsers()[1].items()}))
    return DONE
