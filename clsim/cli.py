"""The command line: `clsim run | tune | list | show | runs | compare | report | verify | pretrain | cache | doctor`.

Heavy packages are imported only when a command needs them: `--help`, `list` and `show` import no torch and no NumPy.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsim import openmp
from clsim.arguments import apart, parsers
from clsim.errors import PeerLost, RequestError, RunFailed, unknown
from clsim.options import ENGINES, OPTIONS, require_utf8
from clsim.terminal import forgiving

if TYPE_CHECKING:
    from clsim import known
    from clsim.engines import many
    from clsim.results import Run

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


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


def _dispatch(argv: list[str]) -> int:
    top, known_commands = parsers()
    for argument in argv:
        require_utf8("an argument", argument)
    if not argv:
        top.print_help()
        return DONE
    name, *rest = argv
    try:
        if name not in known_commands:
            if name.startswith("-"):
                top.parse_args(argv)  # --help and --version end here
            raise unknown("command", name, known_commands)
        rest, fields = apart(rest, known_commands[name]) if name in ("run", "tune") else (rest, [])
        # intermixed: fields may be anywhere among the options
        given, left = known_commands[name].parse_known_intermixed_args(rest)
        if fields:
            given.fields += fields
    except SystemExit as end:
        return DONE if end.code is None else int(end.code)
    if left:
        option = left[0].partition("=")[0]
        if option.startswith("--"):
            raise unknown("option", option, known_commands[name].known)
        raise RequestError(f"clsim {name} does not take {left[0]!r}")
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "tune": _tune,
        "list": _list,
        "show": _show,
        "runs": _runs,
        "compare": _compare,
        "report": _report,
        "verify": _verify,
        "pretrain": _pretrain,
        "cache": _cache,
        "doctor": _doctor,
        "completion": _completion,
    }
    return actions[name](given)


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

    print(completion.script(given.shell, {name: parser.actions for name, parser in parsers()[1].items()}))
    return DONE
