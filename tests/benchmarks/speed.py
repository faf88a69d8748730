"""Strategies in two source trees: ``python tests/benchmarks/speed.py --old TREE [--strategies l2p,coop] [--rounds 3]``.

Each strategy trains and is evaluated in short runs of both trees, which take turns: old, new, old, new. A tree has one
process for all its runs, so that starting does not count. Printed are the medians of seconds and of their ratios, old
to new: above 1, the new tree is faster. One thread; the seconds are of processor time, so that other processes on the
machine count as little as possible. The first run of each kind fills the caches and is not counted.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
TRAIN, TEST = 25, 12  # images of each class: whole batches, nearly
PAIRS = ("source_only", "dann", "cdan", "mcc", "dapl")


def serve() -> None:
    """Run what each line of standard input asks for, and print its seconds of training and evaluation."""
    import time

    time.perf_counter = time.process_time  # type: ignore[assignment]  # before clsim is imported: its clock
    import clsim

    for line in sys.stdin:
        wanted = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            run: Any = clsim.run(**wanted, fresh=True, threads=1)
        cost = json.loads((Path(run.directory) / "summary.json").read_text())["cost"]
        print(json.dumps([cost["seconds_training"], cost["seconds_evaluation"]]), flush=True)


class Tree:
    """A process that runs strategies with the code of one source tree."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.out = folder / "runs"
        paths = {"PYTHONPATH": str(root), "CLSIM_CACHE_DIR": str(folder / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            cwd=root,
            env=os.environ | paths,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, wanted: dict[str, Any]) -> tuple[float, float]:
        """Seconds of training and of evaluation of one run. Raises RuntimeError if it fails."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(wanted | {"out": str(self.out)}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the run failed: {wanted}")
        training, evaluation = json.loads(answer)
        return training, evaluation

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def wanted(strategy: str, backbone: str | None) -> dict[str, Any]:
    """A short run of this strategy: two experiences of five classes, or a pair of domains with 20 classes."""
    run: dict[str, Any] = {"strategy": strategy, "epochs": 1} | ({"backbone": backbone} if backbone else {})
    if strategy in PAIRS:
        scenario, fields = "glyph_pair", {"train_per_class": TRAIN // 4, "test_per_class": TEST // 4}
    else:
        fields = {"classes_per_experience": 5, "train_per_class": TRAIN, "test_per_class": TEST}
        scenario = "split_digits"
    return run | {"scenario": scenario} | {f"scenario.{name}": value for name, value in fields.items()}


def measure(trees: Sequence[Tree], run: dict[str, Any], rounds: int) -> list[tuple[float, float, float]]:
    """For training and for evaluation: median seconds of both trees, and the median of their ratio."""
    found: list[list[tuple[float, float]]] = []
    for _ in range(1 + rounds):
        found.append([tree.seconds(run) for tree in trees])
    result = []
    for kind in range(2):
        old, new = ([each[tree][kind] for each in found[1:]] for tree in range(2))
        ratio = statistics.median(a / b for a, b in zip(old, new, strict=True)) if min(new) else float("nan")
        result.append((statistics.median(old), statistics.median(new), ratio))
    return result


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--new", type=Path, default=HERE, help="the other one (default: this one)")
    parser.add_argument("--strategies", default="l2p,vpt_deep,finetune,coop", help="default %(default)s")
    parser.add_argument("--backbone", help="default: each strategy's own")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--serve", action="store_true", help="used by the benchmark itself")
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    if given.old is None:
        parser.error("--old TREE is missing")
    print(f"{'':16}  training: old s    new s  old/new  evaluation: old s    new s  old/new")
    with tempfile.TemporaryDirectory() as folder:
        trees = [Tree(root.resolve(), Path(folder) / name) for name, root in (("old", given.old), ("new", given.new))]
        for strategy in given.strategies.split(","):
            training, evaluation = measure(trees, wanted(strategy, given.backbone), given.rounds)
            left, right = ("{:8.3f} {:8.3f} {:8.2f}".format(*each) for each in (training, evaluation))
            print(f"{strategy:16}         {left}           {right}", flush=True)
        for tree in trees:
            tree.close()


if __name__ == "__main__":
    main()
