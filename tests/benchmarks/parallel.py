"""Training steps per second of one run on N processes and on one, each process with the same number of threads.

    python tests/benchmarks/parallel.py [--processes 2] [--threads 1] [--strategies vpt_deep,finetune] [--rounds 7]

All processes are started first; then the single one and the several take turns, so that whatever else the machine does
meets both. The processes are on the CPU and talk through gloo. It prints medians over the rounds, and the share of the
processor's time that others had meanwhile. Where that is not near zero, the rounds measure the others, too; what is
left is the processor's time that a step takes: of one process, over that of the busiest of N.
"""

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

import _loops

from clsim import config, parallel
from clsim.backbones.load import load_backbone
from clsim.data.streams import DataAccess
from clsim.engines import local
from clsim.events import Step
from clsim.hardware import torch_settings
from clsim.loop import Loop

STEPS = 8  # of a round


def serve(
    driver: "connection.Connection[Any, Any]", rank: int, size: int, place: str, name: str, batch: int, threads: int
) -> None:
    """In a process: make the loop of a run, and take steps whenever the driver asks; answer with their seconds."""
    with torch_settings(threads):
        if size == 1:
            _work(driver, name, batch)
        else:
            with parallel.joined(rank, size, place):
                _work(driver, name, batch)


def _work(driver: "connection.Connection[Any, Any]", name: str, batch: int) -> None:
    loop = _loop(name, batch)
    _seconds(loop, 2)  # warm
    driver.send(None)
    while driver.recv():
        spent = time.process_time()
        driver.send((_seconds(loop, STEPS), time.process_time() - spent))


def _loop(name: str, batch: int) -> Loop:
    (wanted,) = config.plan({"strategy": name, "batch_size": batch, "device": "cpu", "precision": "fp32"}, {})
    backbone = load_backbone(wanted.backbone, None, None)
    benchmark = wanted.make_scenario().build(DataAccess(None, config.cache_dir(), backbone.image.pixels.stored_side))
    return _loops.begun(wanted.make_strategy(), backbone, benchmark, "fp32")


def _seconds(loop: Loop, steps: int) -> float:
    """Seconds for so many updates with images that are augmented, as in a run."""
    s, began = loop.state, time.perf_counter()
    for _ in range(steps):
        first = loop.state.step * loop.strategy.batch_size
        places = [(first + i) % len(s.experience.rows) for i in range(loop.strategy.batch_size)]
        loop._step(Step(s, s.experience.rows[places]), s.experience)
    return time.perf_counter() - began


class Group:
    """Processes that take their steps together, seen from outside."""

    def __init__(self, size: int, folder: str, name: str, batch: int, threads: int) -> None:
        self.pipes = []
        self.own = self.longest = 0.0  # seconds of the processor: of all processes, and of the one that took most
        place = f"file://{folder}/{name}-{size}"
        for rank in range(size):
            context = local.server()
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, size, place, name, batch, threads)
            context.Process(target=serve, args=arguments, daemon=True).start()
            self.pipes.append(ours)
        self._answers()

    def seconds(self) -> float:
        """Seconds for a round: those of the slowest process."""
        for pipe in self.pipes:
            pipe.send(True)
        times, spent = zip(*self._answers(), strict=True)
        self.own += sum(spent)
        self.longest += max(spent)
        return float(max(times))

    def end(self) -> None:
        """Let the processes end."""
        for pipe in self.pipes:
            pipe.send(False)

    def _answers(self) -> list[Any]:
        return [pipe.recv() for pipe in self.pipes]


def busy() -> tuple[float, float]:
    """Seconds of processor time that the machine has spent, and that were possible, since it started."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, sum(ticks) / per_second


def main() -> None:
    """Print a line for each strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strategies", default="vpt_deep,finetune")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, {asked.threads} threads a process, batches of {asked.batch}")
    for name in asked.strategies.split(","):
        with tempfile.TemporaryDirectory() as folder:
            groups = [Group(size, folder, name, asked.batch, asked.threads) for size in (1, asked.processes)]
            before = busy()
            rounds = [[group.seconds() for group in groups] for _ in range(asked.rounds)]
            after = busy()
            for group in groups:
                group.end()
        one, several = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(single / shared for single, shared in rounds)
        own, work = sum(group.own for group in groups), groups[0].longest / groups[1].longest
        spent, possible = (now - then for now, then in zip(after, before, strict=True))
        print(
            f"{name}: {STEPS * asked.batch / one:.0f} images/s on one process, {STEPS * asked.batch / several:.0f} on "
            f"{asked.processes}: {ratio:.2f} times (rounds {min(a / b for a, b in rounds):.2f} to "
            f"{max(a / b for a, b in rounds):.2f}); by processor time {work:.2f} times; "
            f"others had {max(0.0, spent - own) / possible:.0%} of the processor"
        )


if __name__ == "__main__":
    main()
