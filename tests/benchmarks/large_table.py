"""Memory of a run on many encoded images: ``python tests/benchmarks/large_table.py [--images 200000]``.

Writes so many random JPEG images of 64x64 pixels in 20 classes as Parquet into a temporary folder, in row groups of
1000, and sets the limit beyond which tables stay encoded below their size. On them run ncm, which takes every image
through a tiny tower once, and l2p, which reads augmented images in every step (on 100 images a class, so that it
ends). Printed are seconds, and the peak of the process's resident memory, as Linux counts it, after each.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clsim import config
from clsim.data import table
from clsim.hardware import peak_memory
from clsim.runner import load, run_one

GROUP = 1000


def write(file: Path, count: int, seed: int) -> int:
    """Write `count` images in one file; their encoded bytes."""
    draw = np.random.default_rng(seed)
    names = {"info": {"features": {"fine_label": {"names": [f"class {i}" for i in range(20)], "_type": "ClassLabel"}}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("img", image), ("fine_label", pa.int64())], {"huggingface": json.dumps(names)})
    total = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, count, GROUP):
            rows = []
            for i in range(start, min(start + GROUP, count)):
                stream = io.BytesIO()
                coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG")
                rows.append({"bytes": stream.getvalue(), "path": f"{file.stem}/{i}.jpg"})
                total += len(rows[-1]["bytes"])
            labels = np.arange(start, start + len(rows)) % 20
            writer.write_table(pa.table({"img": rows, "fine_label": labels}, schema=schema), row_group_size=GROUP)
    return total


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    table.LARGEST_DECODED = 64 << 20
    with tempfile.TemporaryDirectory() as folder:
        root, began = Path(folder), time.perf_counter()
        size = write(root / "cifar100" / "train-0.parquet", given.images, 0)
        write(root / "cifar100" / "test-0.parquet", max(20, given.images // 50), 1)
        took = time.perf_counter() - began
        print(f"{given.images} images, {size / 2**20:.0f} MiB encoded, written in {took:.0f} s; ", end="")
        print(f"peak so far {peak_memory() / 2**20:.0f} MiB", flush=True)
        os.environ["CLSIM_CACHE_DIR"] = str(root / "cache")
        common = {"scenario": "split_cifar100", "backbone": "vit_nano", "data_dir": root, "out": root / "runs"}
        common |= {"threads": given.threads, "epochs": 1}
        few = min(100, given.images // 20)
        for strategy, fields in (("ncm", {}), ("l2p", {"scenario.train_per_class": few})):
            began = time.perf_counter()
            (wanted,) = config.plan({**common, "strategy": strategy}, fields)
            cost = load(run_one(wanted)).summary["cost"]
            took, peak = time.perf_counter() - began, cost["peak_memory_bytes"]
            print(f"{strategy}: {took:.0f} s in all, peak memory {peak / 2**20:.0f} MiB", flush=True)
        decoded = 3 * 64 * 64 * given.images / 2**20
        print(f"decoded the images would take {decoded:.0f} MiB")


if __name__ == "__main__":
    main()
