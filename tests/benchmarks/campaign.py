"""Kills, full disks, corrupted files and bad inputs: ``python tests/benchmarks/campaign.py [--kills 200]``.

Each trial is a `clsim` command in a process of its own, forked from one that has imported everything. Small runs are
killed at random moments and resumed; they must end with the same matrix, metrics, losses, weights and predictions as
an unbroken run. Every file of a finished run, of an unfinished one and of the cache is damaged in ten ways. Disks are
full, and the command line gets bad inputs. The table counts how the trials ended; the last three are faults, and the
exit status is 1 if there is one. `--short` is the form in the test suite.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}  # before torch

import argparse
import contextlib
import json
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import clsim
from clsim import checkpoint, cli, config, listing, rundir
from clsim.recorders import tensorboard

TOY = f"{Path(__file__).parents[1] / 'toy.py'}:Toy"
COMMON = (
    "run",
    "--backbone",
    "vit_nano",
    "--precision",
    "fp32",
    "--threads",
    "1",
    "--quiet",
    "--checkpoint-minutes",
    "0",
)
RIGHT, REFUSED, WRONG, TRACEBACK, BY_HAND = (
    "right result",
    "refused in one line",
    "SILENT WRONG",
    "TRACEBACK",
    "BY HAND",
)
OUTCOMES = (RIGHT, REFUSED, WRONG, TRACEBACK, BY_HAND)  # from good to bad
LIMIT = 300  # seconds for a command
CRASHED = 70  # exit status of a child with a traceback


class Ended(NamedTuple):
    """A process that has ended."""

    status: int  # exit status; negative: the signal that ended it
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """Whether it ended with a line that says why."""
        return self.status in (cli.FAILED, cli.MISTAKE) and "clsim: " in self.err.splitlines()[-1]

    @property
    def crashed(self) -> bool:
        """Whether it ended in a way that explains nothing."""
        return "Traceback" in self.err or self.status not in (cli.DONE, cli.FAILED, cli.MISTAKE)


@dataclass
class Report:
    """How the trials of each kind ended."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, trial: str, outcome: str, ended: Ended | None = None) -> None:
        """Count a trial; a fault is printed at once."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if OUTCOMES.index(outcome) >= OUTCOMES.index(WRONG):
            last = (ended.err or ended.out).strip().splitlines()[-1:] if ended else []
            self.faults.append(f"{kind}: {trial}: {outcome} {' '.join(last)}")
            print(self.faults[-1], flush=True)

    def table(self) -> str:
        """One row for each kind of trial."""
        width = max(map(len, self.counts), default=0)
        lines = [f"{'':{width}}  {'  '.join(OUTCOMES)}"]
        for kind, counts in self.counts.items():
            lines.append(f"{kind:{width}}  {'  '.join(f'{counts[each]:>{len(each)}}' for each in OUTCOMES)}")
        return "\n".join(lines)


# processes


def child(work: Callable[[], int], kill: tuple[float, int] | None = None, limit: float = LIMIT) -> Ended:
    """What a forked process does; `kill`: after how many seconds it gets which signal. No threads exist yet."""
    pipes = [os.pipe() for _ in range(2)]
    number = os.fork()
    if number == 0:
        for (_, end), place in zip(pipes, (1, 2), strict=True):
            os.dup2(end, place)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        status = CRASHED
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for _, end in pipes:
        os.close(end)
    texts = _read([start for start, _ in pipes], number, kill, limit)
    _, status = os.waitpid(number, 0)
    return Ended(os.waitstatus_to_exitcode(status), *texts)


def _read(pipes: Sequence[int], number: int, kill: tuple[float, int] | None, limit: float) -> list[str]:
    """Everything that a child writes into its pipes; it gets the signal meanwhile."""
    texts = dict.fromkeys(pipes, b"")
    began, left = time.monotonic(), list(pipes)
    while left:
        due = limit if kill is None else kill[0]
        ready = select.select(left, [], [], max(0.0, began + due - time.monotonic()))[0]
        if not ready:
            os.kill(number, signal.SIGKILL if kill is None else kill[1])
            kill = None
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            texts[pipe] += part
            if not part:
                left.remove(pipe)
                os.close(pipe)
    return [text.decode(errors="replace") for text in texts.values()]


def command(*words: object, cache: Path, kill: tuple[float, int] | None = None, limit: float = LIMIT) -> Ended:
    """A `clsim` command."""

    def work() -> int:
        os.environ["CLSIM_CACHE_DIR"] = str(cache)
        return cli.main([str(word) for word in words])

    return child(work, kill, limit)


def result(directory: Path, cache: Path) -> Ended:
    """Everything that a reader gets from a finished run, as text, without times."""

    def work() -> int:
        os.environ["CLSIM_CACHE_DIR"] = str(cache)
        try:
            run = clsim.load(directory)
            images = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)
            kinds = {kind: {n: c.tolist() for n, c in named.items()} for kind, named in run.events.items()}
            losses = {
                kind: kinds.get(kind, {}).get(name) for kind, name in (("step", "loss"), ("evaluation", "correct"))
            }
            read = [run.matrix, run.metrics, losses, run.class_names, run.predict(images).tolist()]
            weights = checkpoint.load(directory / rundir.CHECKPOINT)["learner"]
            print(json.dumps(read), {name: tensor.flatten().tolist() for name, tensor in weights.items()})
        except clsim.errors.RequestError as error:
            print(f"clsim: error: {error}", file=sys.stderr)
            return cli.MISTAKE
        return cli.DONE

    return child(work)


class Case:
    """A command with the result of its unbroken run."""

    def __init__(self, root: Path, name: str, *words: object) -> None:
        self.name, self.root = name, root / name
        self.out, self.cache = self.root / "runs", self.root / "cache"
        self.words = (*COMMON, *words, "--out", self.out)
        began = time.monotonic()
        ended = self.run()
        assert ended.status == cli.DONE, ended.err
        self.seconds = time.monotonic() - began
        self.directory = next(self.out.rglob(rundir.SUMMARY)).parent
        self.unbroken = self.read()
        assert self.unbroken.status == cli.DONE, self.unbroken.err

    def run(self, *more: str, kill: tuple[float, int] | None = None) -> Ended:
        """Repeat the command."""
        return command(*self.words, *more, cache=self.cache, kill=kill)

    def read(self) -> Ended:
        """The result of the present run."""
        return result(self.directory, self.cache)

    def judged(self, ended: Ended) -> str:
        """How a command or a reader ended that should have done its work."""
        if ended.crashed:
            return TRACEBACK
        if ended.status != cli.DONE:
            return REFUSED if ended.refused else TRACEBACK
        found = ended if ended.out else self.read()
        if found.status != cli.DONE:
            return TRACEBACK if found.crashed or not found.refused else REFUSED
        return RIGHT if found.out == self.unbroken.out else WRONG

    def repeated(self) -> tuple[str, Ended]:
        """How the command ends now; if it is refused, --fresh must do its work."""
        ended = self.run()
        outcome = self.judged(ended)
        if outcome == REFUSED:
            again = self.run("--fresh")
            if self.judged(again) != RIGHT:
                return BY_HAND, again
        return outcome, ended


# kills


def kills(report: Report, cases: Sequence[Case], count: int, draw: random.Random) -> None:
    """Kill runs, new starts of runs and clearings of the cache at random moments; go on, and compare the end."""
    done = 0
    while done < count:
        case = cases[draw.randrange(len(cases))]
        for folder in (case.out, case.cache):
            shutil.rmtree(folder, ignore_errors=True)
        for _ in range(min(draw.randint(1, 8), count - done)):
            done += 1
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT))
            what = draw.choice(("", "", "", "", "--fresh", "clear"))
            if what == "clear":
                ended = command("cache", "--clear", cache=case.cache, kill=(draw.uniform(0, 0.02), number))
            else:
                ended = case.run(*filter(None, (what,)), kill=(draw.uniform(0, 1.1 * case.seconds), number))
            fine = ended.status in (cli.DONE, -signal.SIGKILL)
            fine |= number == signal.SIGINT and ended.status == cli.INTERRUPTED and ended.err.count("\n") == 1
            outcome = RIGHT if fine and "Traceback" not in ended.err else TRACEBACK
            report.add("killed or interrupted", f"{case.name} {what}", outcome, ended)
        outcome, ended = case.repeated()
        left = [path.name for path in case.cache.rglob("*.tmp-*")] if case.cache.exists() else []
        report.add("resumed after kills", f"{case.name} {left}", BY_HAND if left else outcome, ended)


# corrupted files


def _changed(data: bytes, digit: bool, draw: random.Random) -> bytes:
    places = [i for i, byte in enumerate(data) if not digit or byte in b"0123456789"] or [*range(len(data))]
    place = draw.choice(places)
    new = b"5716389402"[data[place] - 48] if digit and data[place] in b"0123456789" else data[place] ^ 0x11
    return data[:place] + bytes([new]) + data[place + 1 :]


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


def damages(draw: random.Random, other: Callable[[Path], Path]) -> dict[str, Callable[[Path], object]]:
    """Ten ways to damage a file; `other`: the same file of another run."""
    return {
        "a flipped byte": lambda path: path.write_bytes(_changed(path.read_bytes(), False, draw)),
        "a flipped digit": lambda path: path.write_bytes(_changed(path.read_bytes(), True, draw)),
        "truncated": lambda path: path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)]),
        "empty": lambda path: path.write_bytes(b""),
        "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "removed": lambda path: path.unlink(),
        "a folder": _folder,
        "of another": lambda path: shutil.copyfile(other(path), path),
        "garbage appended": lambda path: path.write_bytes(path.read_bytes() + draw.randbytes(40)),
        "text": lambda path: path.write_text("this is not what it was\n"),
    }


def files_below(folder: Path) -> list[Path]:
    """The files that can be damaged: not empty ones, such as a lock."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def restored(pristine: Path, place: Path) -> None:
    """A copy of `pristine` at `place`, and nothing else."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)


def trials(pristine: Path, other: Path, share: float, draw: random.Random) -> Iterator[tuple[str, Path, str]]:
    """(name, file relative to `pristine`, damage) of each trial, or of a random share of them."""
    ways = damages(draw, lambda path: path)
    chosen = [(file.relative_to(pristine), way) for file in files_below(pristine) for way in ways]
    for file, way in chosen if share == 1 else draw.sample(chosen, max(1, int(share * len(chosen)))):
        yield f"{file}, {way}", file, way


def _like(folder: Path, file: Path) -> Path:
    """The file of another run or cache that has the same part: the same name, or the same kind of name."""
    same = [path for path in files_below(folder) if path.name == file.name]
    kind = [path for path in files_below(folder) if path.name.split(".")[0] == file.name.split(".")[0]]
    return (same or kind or files_below(folder))[0]


def _fine(path: Path, pristine: Path) -> bool:
    """Whether a file is as it was, or a bank's flags are, but for some that are gone: those blocks count as never
    filled and are computed again. A note about finished runs may be gone: then they are prepared to be found."""
    if path.parent.name == listing.NOTES and not path.exists():
        return True
    if not path.is_file() or path.stat().st_size != pristine.stat().st_size:
        return False
    now, before = path.read_bytes(), pristine.read_bytes()
    return now == before or (path.name == "filled" and all(a in (0, b) for a, b in zip(now, before, strict=True)))


def finished_runs(report: Report, case: Case, other: Path, share: float, draw: random.Random) -> None:
    """Damage each file of a finished run; then read it, verify it, and repeat its command."""
    pristine = case.root / "finished"
    restored(case.directory, pristine)
    ways = damages(draw, lambda path: _like(other, path))
    for name, file, way in trials(pristine, other, share, draw):
        restored(pristine, case.directory)
        ways[way](case.directory / file)
        same = _fine(case.directory / file, pristine / file)
        ended = case.read()
        report.add("finished run is read", name, case.judged(ended), ended)
        ended = command("verify", case.directory, cache=case.cache)
        summary_gone = file.name == rundir.SUMMARY and way == "removed"  # then it is an unfinished run, and whole
        if ended.crashed:
            outcome = TRACEBACK
        else:
            outcome = RIGHT if (ended.status == cli.FAILED) is not (same or summary_gone) else WRONG
        report.add("finished run is verified", name, outcome, ended)
        report.add("finished run is repeated", name, *case.repeated())
    restored(pristine, case.directory)


def unfinished_runs(report: Report, case: Case, other: Path, share: float, draw: random.Random) -> None:
    """Damage each file of a run that was killed after some checkpoints; then go on."""
    shutil.rmtree(case.out)
    left = draw.randint(3, 8)

    def work() -> int:
        os.environ["CLSIM_CACHE_DIR"] = str(case.cache)
        save = checkpoint.save

        def counted(*args: object) -> None:
            nonlocal left
            save(*args)  # type: ignore[arg-type]
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(checkpoint, "save", counted)  # noqa: B010
        return cli.main([str(word) for word in case.words])

    assert child(work).status == -signal.SIGKILL
    pristine = case.root / "unfinished"
    restored(case.directory, pristine)
    ways = damages(draw, lambda path: _like(other, path))
    for name, file, way in trials(pristine, other, share, draw):
        restored(pristine, case.directory)
        ways[way](case.directory / file)
        report.add("unfinished run goes on", name, *case.repeated())


def caches(report: Report, case: Case, other: Path, share: float, draw: random.Random) -> None:
    """Damage each file of the cache; the next run must make what it needs again, whatever it finds."""
    shutil.rmtree(case.out)
    shutil.rmtree(case.cache, ignore_errors=True)
    assert case.run().status == cli.DONE
    pristine = case.root / "pristine cache"
    restored(case.cache, pristine)
    ways = damages(draw, lambda path: _like(other, path))
    for name, file, way in trials(pristine, other, share, draw):
        restored(pristine, case.cache)
        shutil.rmtree(case.out)
        ways[way](case.cache / file)
        ended = case.run()
        outcome = case.judged(ended)
        report.add("cache is read", name, BY_HAND if outcome == REFUSED else outcome, ended)
        restored(pristine, case.cache)
        ways[way](case.cache / file)
        fine = _fine(case.cache / file, pristine / file)
        ended = command("cache", "--verify", cache=case.cache)
        outcome = TRACEBACK if ended.crashed else RIGHT if (ended.status == cli.FAILED) is not fine else WRONG
        report.add("cache is verified", name, outcome, ended)


# full disks


def full_disks(report: Report, case: Case, count: int, draw: random.Random) -> None:
    """Files that may not grow beyond some size (for the system's superuser, too), then a run without the limit."""
    for _ in range(count):
        for folder in (case.out, case.cache):
            shutil.rmtree(folder, ignore_errors=True)
        size = int(10 ** draw.uniform(0, 5.5))

        def work(size: int = size) -> int:
            os.environ["CLSIM_CACHE_DIR"] = str(case.cache)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return cli.main([str(word) for word in case.words])

        ended = child(work)
        outcome = case.judged(ended)
        report.add("full disk", f"files of {size} bytes", outcome, ended)
        outcome, ended = case.repeated()
        report.add("run after a full disk", f"files of {size} bytes", BY_HAND if outcome == REFUSED else outcome, ended)


# bad inputs


def bad_inputs(root: Path) -> list[Sequence[object]]:
    """Requests that cannot be carried out."""
    root.mkdir(parents=True, exist_ok=True)
    text, folder, binary = root / "text.toml", root / "folder", root / "binary.bin"
    folder.mkdir(exist_ok=True)
    text.write_text("strategy = [\n")
    binary.write_bytes(bytes(range(256)) * 8)
    (root / "broken.py").write_text("def broken(:\n")
    (root / "raises.py").write_text("raise RuntimeError('on import')\n")
    (root / "empty.py").write_text("")
    files = [text, binary, folder, root / "nowhere", root / "empty.py", root / "broken.py", root / "raises.py"]
    run: list[Sequence[object]] = [
        *(
            ["--strategy", name]
            for name in ("nothing", "", "l2p,nothing", "L2P;rm", "../l2p", "er:500", "é", "l2p:", ":")
        ),
        *(["--scenario", name] for name in ("nothing", "split_digits,pacs", "folder", "\0", " ")),
        *(["--backbone", name] for name in ("nothing", "clip:nothing", "clip:", "resnet50", "../vit", "vit_nan", " ")),
        *(["--seed", value] for value in ("-1", "a", "1.5", "", "0-", "1e3", "0-99999999999", "nan")),
        *(["--epochs", value] for value in ("-1", "a", "1.5", "", "nan", "1e400")),
        *(["--batch-size", value] for value in ("0", "-3", "a", "", "0.5")),
        *(["--with", value] for value in ("nothing", "er:a", "ewc:a:b:c", "er,size", "der,nothing=1", ":", "er:")),
        *(["--device", value] for value in ("tpu", "cuda:x", "", "cpu:cpu")),
        *(["--precision", value] for value in ("fp8", "", "32")),
        *(["--threads", value] for value in ("0", "-1", "a", "100000", "1e20")),
        *(["--image-size", value] for value in ("0", "-4", "a", "7")),
        *(["--eval-every", value] for value in ("0", "-1", "a")),
        *(["--checkpoint-minutes", value] for value in ("-1", "a", "nan")),
        *(["--preset", value] for value in ("nothing", "")),
        *(["--weights", file] for file in (text, binary, folder, root / "nowhere")),
        *(["--config", file] for file in (text, binary, folder, root / "nowhere")),
        *(["--strategy", f"{file}:Mine"] for file in files),
        *(
            [word]
            for word in ("top_k=a", "top_k", "=1", "top_k=-1", "nothing=1", "l2p.nothing=1", "ncm.x=1", "scenario.x=1")
        ),
        *([word] for word in ("scenario.order_seed=a", "scenario.train_per_class=0", "scenario.train_per_class=-1")),
        *([word] for word in ("lr=a", "lr=", "mask=nothing", "pool_size=0", "scenario.classes_per_experience=3")),
        ["--data-dir", root / "nowhere"],
        ["--nothing"],
        ["--fresh=maybe"],
        ["--out", text],
        ["--out", ""],
    ]
    other: list[Sequence[object]] = [
        ["nothing"],
        ["show"],
        ["show", "nothing"],
        ["list", "nothing"],
        ["compare"],
        *(["compare", file] for file in (text, folder, root / "nowhere")),
        ["compare", folder, "--format", "pdf"],
        ["verify"],
        *(["verify", file] for file in (text, folder, root / "nowhere")),
        ["cache", "--nothing"],
        ["pretrain", "nothing"],
    ]
    small = ("--backbone", "vit_nano", "--epochs", "1", "scenario.train_per_class=4", "scenario.test_per_class=2")
    own = ("--out", root / "runs", "--quiet")
    defaults = {"--backbone": small[:2], "--epochs": small[2:4], "--out": own[:2]}
    made: list[Sequence[object]] = []
    for words in run:
        rest: list[object] = [*(word for name, pair in defaults.items() if name != words[0] for word in pair)]
        fields = [each for each in small[4:] if each.split("=")[0] != str(words[0]).split("=")[0]]
        made.append(["run", *words, *rest, *fields, "--quiet"])
    return made + other


def inputs(report: Report, root: Path, count: int | None, draw: random.Random) -> None:
    """Give the command line bad inputs; each must be refused in one line."""
    every = bad_inputs(root)
    for words in every if count is None else draw.sample(every, count):
        ended = command(*words, cache=root / "cache", limit=60)
        in_one_line = ended.refused and ended.err.count("\n") == 1
        outcome = TRACEBACK if ended.crashed else REFUSED if in_one_line else WRONG
        report.add("bad input", " ".join(map(str, words)), outcome, ended)


# all


def tree_of_images(root: Path, shades: int) -> Path:
    """A tree of class folders."""
    draw = np.random.default_rng(shades)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("apple", "pear", "plum", "quince")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = draw.integers(0, shades, (8, 8, 3), dtype=np.uint8)
                image[:, 2 * label : 2 * label + 2] = 255
                Image.fromarray(image).save(folder / f"{i}.png")
    return root


KINDS = ("inputs", "kills", "full", "unfinished", "caches", "finished")


def campaign(root: Path, given: argparse.Namespace, report: Report) -> None:
    """The kinds of trials that are asked for."""
    draw, short, only = random.Random(given.seed), given.short, given.only.split(",")
    share = 0.02 if short else given.share
    on_toy = ("--scenario", TOY, "--epochs", 1, "batch_size=4")
    trees = [tree_of_images(root / f"tree {shades}", shades) for shades in (100, 90)]
    on_tree = ("--scenario", "folder", "scenario.classes_per_experience=2", "--epochs", 1, "batch_size=8", "--data-dir")
    linear = Case(root, "linear", "--strategy", "linear", *on_tree, trees[0])
    other = Case(root, "other", "--strategy", "linear", "--seed", 1, *on_tree, trees[1])
    tuned = Case(root, "tuned", "--strategy", "partial", "--with", "er:8", *on_toy)
    cases = [linear, tuned]
    if not short:
        cases += [Case(root, name, "--strategy", name, *on_toy) for name in ("l2p", "ncm")]
    if "inputs" in only:
        inputs(report, root / "inputs", 8 if short else None, draw)
    if "kills" in only:
        kills(report, cases, 4 if short else given.kills, draw)
    if "full" in only:
        full_disks(report, linear, 1 if short else 30, draw)
    if "unfinished" in only:
        unfinished_runs(report, tuned, other.directory, share, draw)
    if "caches" in only:
        caches(report, linear, other.cache, share, draw)
    for case in ([tuned] if short else [tuned, linear]) if "finished" in only else []:
        case.run()
        finished_runs(report, case, other.directory, share, draw)


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--share", type=float, default=1.0, help="of the damages to files that are tried (default 1)")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of trials (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few trials of each kind, in some seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("accuracy_matrix_figure", "bars_figure"):  # drawing takes most of a small run
        setattr(tensorboard, name, lambda *args: None)
    setattr(tensorboard, "to_array", lambda figure: np.zeros((1, 1, 3), np.uint8))  # noqa: B010
    for name in ("torch.utils.tensorboard", "clsim.prediction"):  # once, here, and not in every child
        import_module(name)
    for name in ("linear", "partial", "l2p", "ncm"):
        config.plan({"strategy": name}, {})
    with tempfile.TemporaryDirectory() as folder:
        began, report = time.monotonic(), Report()
        with contextlib.suppress(KeyboardInterrupt):  # then the table has what there was time for
            campaign(Path(folder), given, report)
    print(f"\n{report.table()}\n{len(report.faults)} faults, {time.monotonic() - began:.0f} s")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
