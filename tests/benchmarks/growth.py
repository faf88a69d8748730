"""Cost as work grows: seconds and peak memory of runs, as a table and a picture.

    python tests/benchmarks/growth.py [--quick] [--out growth.png]

Each line is one run, or one request, in a process of its own, on random images of 16x16 pixels and vit_nano; one size
grows, and the others stay. `growth` is the exponent of the seconds beyond an empty request's, from the smallest to the
largest size: 1 is linear. Evaluation after each experience is quadratic in experiences by its definition: it tests the
images of every experience so far. So that line has one test image a class, and what is left is the fixed cost.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCENARIO = '''
from dataclasses import dataclass

import numpy as np

from clsim.data.streams import Benchmark, ClassScenario, DataAccess, class_incremental
from clsim.data.table import ImageTable


@dataclass(kw_only=True)
class Random(ClassScenario):
    """Random images."""

    images: int = 1000
    tests: int = 100
    classes: int = 10
    experiences: int = 5

    def build(self, data: DataAccess) -> Benchmark:
        train, test = self._table(self.images, 0), self._table(self.tests, 1)
        return class_incremental(self, train, test, self.classes // self.experiences)

    def _table(self, count: int, seed: int) -> ImageTable:
        images = np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
        names = tuple(f"class {i}" for i in range(self.classes))
        return ImageTable.from_arrays(images, np.arange(count) % self.classes, names)
'''
WORK = """
import json, sys, time
from clsim import config, runner
from clsim.hardware import peak_memory
options, fields = json.loads(sys.argv[1])
began = time.perf_counter()
runner.run_all(config.plan(options, fields), quiet=True)
print(json.dumps([time.perf_counter() - began, time.process_time(), peak_memory()]))
"""


@dataclass(frozen=True)
class Series:
    """Requests in which one size grows."""

    title: str
    sizes: Sequence[int]
    strategy: str = "ncm"
    grows: str = "images"  # a field of the scenario; seeds, strategies or threads
    fixed: str = ""  # other fields: "classes=1000 tests=1000"; {n} is the size


SERIES = (
    Series("images, ncm", (1000, 10_000, 50_000, 200_000)),
    Series("images, linear, one epoch", (1000, 10_000, 50_000), "linear"),
    Series("images, finetune, one epoch", (1000, 5000, 20_000), "finetune"),
    Series("classes, ncm", (10, 100, 1000), grows="classes", fixed="images=10000 tests=1000"),
    Series("classes, linear", (10, 100, 1000), "linear", "classes", "images=10000 tests=1000"),
    Series("experiences, ncm", (5, 20, 100, 200), grows="experiences", fixed="classes=200 images=2000 tests=200"),
    Series("seeds, ncm", (1, 5, 30), grows="seeds"),
    Series("strategies, one step each", (1, 5, 10), grows="strategies", fixed="images=100"),
    Series("threads, finetune", (1, 2), "finetune", "threads", "images=5000"),
)
STRATEGIES = ("ncm", "linear", "finetune", "er", "bias", "adapter", "lora", "ssf", "vpt_deep", "vpt_shallow")
QUICK = {"images, ncm": (1000, 20_000), "experiences, ncm": (5, 100), "seeds, ncm": (1, 5)}


def request(series: Series, size: int, folder: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak bytes of one request. Raises CalledProcessError if it fails."""
    options = {"scenario": f"{folder}/random_images.py:Random", "strategy": series.strategy, "backbone": "vit_nano"}
    options |= {"out": f"{folder}/{series.title}-{size}", "epochs": "1", "threads": "1"}
    fields = dict(pair.split("=") for pair in series.fixed.split())
    if series.grows == "seeds":
        options["seed"] = f"0-{size - 1}"
    elif series.grows == "strategies":
        options["strategy"] = ",".join(STRATEGIES[:size])
    elif series.grows == "threads":
        options["threads"] = str(size)
    else:
        fields[series.grows] = str(size)
    named = {f"scenario.{name}": value for name, value in fields.items()}
    environment = os.environ | {"CLSIM_CACHE_DIR": f"{folder}/cache/{series.title}-{size}"}
    command = [sys.executable, "-c", WORK, json.dumps([options, named])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    wall, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu, peak


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the growth of seconds above the smallest size's, between the last two sizes or from the first to the last."""
    if len(sizes) < 3 or seconds[-2] <= seconds[0]:
        return math.log(max(seconds[-1] / seconds[0], 1e-9)) / math.log(sizes[-1] / sizes[0])
    more = (seconds[-1] - seconds[0]) / (seconds[-2] - seconds[0])
    return math.log(max(more, 1e-9)) / math.log((sizes[-1] - sizes[0]) / (sizes[-2] - sizes[0]))


def draw(found: dict[str, list[tuple[int, float, float, int]]], file: Path) -> None:
    """Seconds and peak memory against each size, in one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 5.6), dpi=110, layout="constrained")
    for column, (title, rows) in enumerate(found.items()):
        sizes = [row[0] for row in rows]
        for line, (name, values) in enumerate(
            (("CPU seconds", [row[2] for row in rows]), ("peak MiB", [row[3] / 2**20 for row in rows]))
        ):
            axes = figure.add_subplot(2, len(found), line * len(found) + column + 1)
            axes.plot(sizes, values, "o-", color="#31688e", markersize=4)
            axes.set_xscale("log")
            axes.set_ylim(0, 1.1 * max(values))
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
            axes.minorticks_off()
            axes.set_title(title if line == 0 else "", fontsize=9)
            axes.set_ylabel(name if column == 0 else "", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    """Read the options, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes: about a minute")
    parser.add_argument("--only", default="", help="only lines whose title begins like this")
    parser.add_argument("--out", type=Path, default=Path("growth.png"), help="the picture (default growth.png)")
    options = parser.parse_args()
    found: dict[str, list[tuple[int, float, float, int]]] = {}
    print(f"{'':28}{'size':>9}{'seconds':>9}{'CPU s':>9}{'peak MiB':>10}{'growth':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "random_images.py").write_text(SCENARIO)
        for series in SERIES:
            sizes = QUICK.get(series.title, ()) if options.quick else series.sizes
            if not sizes or not series.title.startswith(options.only):
                continue
            rows = found.setdefault(series.title, [])
            for size in sizes:
                wall, cpu, peak = request(series, size, folder)
                rows.append((size, wall, cpu, peak))
                growth = f"{exponent(sizes, [row[2] for row in rows]):8.2f}" if size == sizes[-1] else ""
                print(f"{series.title:28}{size:9,}{wall:9.1f}{cpu:9.1f}{peak / 2**20:10.0f}{growth}", flush=True)
            if series.grows == "experiences":
                more = (rows[-1][2] - rows[0][2]) / (sizes[-1] - sizes[0])
                print(f"{'':28}{more:.3f} CPU seconds for each further experience")
    draw(found, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
