"""Whole-process seconds of commands that ought to answer at once, and whether they import torch.

    python tests/benchmarks/startup.py [--rounds 5] [--runs 1000] [--step]

Each command runs in a process of its own, as a user would start it. Printed are the median of the rounds, and the
seconds that an interpreter takes to start and do nothing. The finished run that is read back is one of ncm on
split_digits; the runs that are compared are copies of it with 50 seeds of each of several settings. With --step also
the seconds from the start of `clsim run` to its first training step, with everything in the cache.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from clsim import checksums, rundir

COMMANDS = (("--help",), ("--version",), ("list",), ("show", "l2p"))
FINISHED = ("run", "--strategy", "ncm", "--backbone", "vit_nano", "--quiet")
STEPS = (("vit_nano", "l2p"), ("vit_micro", "l2p"))  # backbone, strategy
SEEDS = 50  # of each setting among the runs that are compared


def seconds(arguments: list[str], folder: Path | None = None) -> float:
    """Wall seconds of one Python process. Raises CalledProcessError if it fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - began


def imports_torch(arguments: list[str], folder: Path) -> bool:
    """Whether the process has imported torch by its end, as Python's own list of imports has it."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())


def copies(run: Path, folder: Path, count: int) -> None:
    """`count` finished runs like `run`, with other seeds and settings, and checksums that are right."""
    settings, described = (run / rundir.CONFIG).read_text(), json.loads((run / rundir.SUMMARY).read_text())
    for i in range(count):
        copy = folder / f"vit_nano-s{i % SEEDS}-{i:08x}"
        copy.mkdir(parents=True)
        for name in (rundir.MATRIX, rundir.ENVIRONMENT):
            shutil.copy(run / name, copy / name)
        text = re.sub(r"(?m)^seed = \d+", f"seed = {i % SEEDS}", settings)
        (copy / rundir.CONFIG).write_text(re.sub(r"(?m)^batch_size = \d+", f"batch_size = {1 + i // SEEDS}", text))
        text = json.dumps(described | {"seed": i % SEEDS, "config_hash": f"{i:08x}"}, indent=1)
        (copy / rundir.CHECKSUMS).write_text(checksums.text_for(copy, {rundir.SUMMARY: text}))
        (copy / rundir.SUMMARY).write_text(text)


def first_step(backbone: str, strategy: str, folder: Path) -> float:
    """Seconds from the start of the process to the end of its first training step."""
    out = folder / "steps"
    shutil.rmtree(out, ignore_errors=True)
    command = ["run", "--backbone", backbone, "--strategy", strategy, "--epochs", "1", "--out", str(out), "--quiet"]
    began = time.time()
    seconds(["-m", "clsim", *command, "scenario.train_per_class=8", "scenario.test_per_class=2"], folder)
    (journal,) = out.rglob(rundir.EVENTS)
    steps = (float(record["time"]) for record in rundir.read_records(journal) if record["event"] == "step")
    return next(steps) - began


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default 5)")
    parser.add_argument("--runs", type=int, default=1000, help="runs that are compared (default 1000)")
    parser.add_argument("--step", action="store_true", help="measure the first training step, too")
    options = parser.parse_args()
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    print(f"{'python alone':32}{median(seconds(['-c', 'pass']) for _ in range(options.rounds)):6.2f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CLSIM_CACHE_DIR"] = str(folder / "cache")
        seconds(["-m", "clsim", *FINISHED], folder)
        copies(next((folder / "runs").rglob(rundir.SUMMARY)).parent, folder / "many", options.runs)
        compared = f"clsim compare ({options.runs:,} runs)"
        commands: dict[str, tuple[str, ...]] = {f"clsim {' '.join(command)}": command for command in COMMANDS}
        commands |= {"clsim run (finished)": FINISHED, compared: ("compare", "many")}
        commands[f"clsim runs ({options.runs:,} runs)"] = ("runs", "many")
        for title, command in commands.items():
            arguments = ["-m", "clsim", *command]
            seconds(arguments, folder)  # the first one reads files from disk and compiles them
            taken = median(seconds(arguments, folder) for _ in range(options.rounds))
            torch = "imports torch" if imports_torch(arguments, folder) else "without torch"
            print(f"{title:32}{taken:6.2f} s  {torch}", flush=True)
        for backbone, strategy in STEPS if options.step else ():
            taken = median(first_step(backbone, strategy, folder) for _ in range(options.rounds))
            print(f"{f'first step, {strategy} on {backbone}':32}{taken:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
