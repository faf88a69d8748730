"""Fixtures that several test files share: small real files, the folder of real images, a cache that is thrown away."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clsim import checkpoint, runner
from clsim.data.table import ImageTable


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory):
    """Two threads, a cache of the session's own, and no data directory from outside."""
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLSIM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CLSIM_DATA_DIR", raising=False)
        yield


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The session's cache folder."""
    return Path(os.environ["CLSIM_CACHE_DIR"])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images: CLSIM_TEST_DATA, or ../shared/data beside the checkout; skips where there is none."""
    given = os.environ.get("CLSIM_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real images: neither CLSIM_TEST_DATA nor ../shared/data is there")
    return folder


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """(H,W) or (H,W,3) uint8 -> the bytes of a PNG file."""

    def to_png(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return stream.getvalue()

    return to_png


@pytest.fixture(scope="session")
def write_parquet(encode) -> Callable[..., Path]:
    """Writes a Parquet file as the Hub stores it.

    `images` are arrays, or bytes as they are to be stored; `labels` integers or strings; `names` go into the metadata.
    """

    def write(
        file: Path,
        images: Sequence,
        labels: Sequence,
        names: Sequence[str] | None = None,
        image: str = "image",
        label: str = "label",
        struct: bool = True,
        domains: Sequence | None = None,
    ) -> Path:
        data = [item if isinstance(item, bytes) else encode(item) for item in images]
        column = [{"bytes": item, "path": f"{i}.png"} for i, item in enumerate(data)] if struct else data
        columns = {image: column, label: list(labels)}
        if domains is not None:
            columns["domain"] = list(domains)
        table = pa.table(columns)
        if names is not None:
            about = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        return file

    return write


@pytest.fixture(scope="session")
def make_table() -> Callable[..., ImageTable]:
    """A table in memory: `per_class` random images of each of `num_classes` classes."""

    def make(num_classes: int = 6, per_class: int = 10, size: int = 16, seed: int = 0) -> ImageTable:
        draw = np.random.default_rng(seed)
        labels = np.repeat(np.arange(num_classes), per_class)
        images = draw.integers(0, 256, (len(labels), 3, size, size), dtype=np.uint8)
        return ImageTable.from_arrays(images, labels, tuple(f"class {i}" for i in range(num_classes)))

    return make


@pytest.fixture(scope="session")
def domain_tree(tmp_path_factory, encode) -> Path:
    """root/domain/class/*.png: two domains, three classes, 15 images of each."""
    root = tmp_path_factory.mktemp("domains")
    draw = np.random.default_rng(0)
    for domain, shade in (("day", 160), ("night", 0)):
        for label, name in enumerate(("circle", "square", "star")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(15):
                image = draw.integers(shade, shade + 64, (16, 16, 3), dtype=np.uint8)
                image[4 * label : 4 * label + 4] = 255 - shade
                (folder / f"{i}.png").write_bytes(encode(image))
    return root


@pytest.fixture
def broken_off(monkeypatch) -> Callable[..., None]:
    """Calls `work` and breaks it off as Ctrl-C does, where it would save once more than `saves` times."""

    def call(saves: int, work: Callable[[], object]) -> None:
        made: list[int] = []

        def save(*args: object) -> None:
            if len(made) == saves:
                raise KeyboardInterrupt
            made.append(1)
            checkpoint.save(*args)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(runner.checkpoint, "save", save)
            work()

    return call
