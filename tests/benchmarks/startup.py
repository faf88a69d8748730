"""Whole-process seconds of commands that ought to answer at once, and whether they import torch.

    python tests/benchmarks/startup.py [--rounds 5]

Each command runs in a process of its own, as a user would start it. Printed are the median of the rounds, and the
seconds that an interpreter takes to start and do nothing.
"""

import argparse
import subprocess
import sys
import time
from statistics import median

COMMANDS = (("--help",), ("--version",), ("list",), ("show", "l2p"))


def seconds(arguments: list[str]) -> float:
    """Wall seconds of one Python process. Raises CalledProcessError if it fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def imports_torch(arguments: list[str]) -> bool:
    """Whether the process has imported torch by its end, as Python's own list of imports has it."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    return any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default 5)")
    rounds = parser.parse_args().rounds
    print(f"{'python alone':16}{median(seconds(['-c', 'pass']) for _ in range(rounds)):6.2f} s")
    for command in COMMANDS:
        arguments = ["-m", "clsim", *command]
        seconds(arguments)  # the first one reads files from disk and compiles them
        taken = median(seconds(arguments) for _ in range(rounds))
        torch = "imports torch" if imports_torch(arguments) else "without torch"
        print(f"{'clsim ' + ' '.join(command):16}{taken:6.2f} s  {torch}")


if __name__ == "__main__":
    main()
