"""Fixtures that several test files share: small runs, small real files, a cache that is thrown away."""

import os

# before torch is imported, and for the processes that tests start: one thread, which waits without spinning
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from clsim import checkpoint, checksums, config, plugins, rundir, runner
from clsim.config import RunConfig
from clsim.data.batches import Loader
from clsim.data.table import ImageTable
from clsim.evaluation import Predicted, predict_rows
from clsim.events import Part, State
from clsim.loop import Loop
from clsim.recorders import tensorboard
from clsim.results import Run
from clsim.runner import Job

TOY = f"{Path(__file__).with_name('toy.py')}:Toy"
SMALL = {"epochs": 2, "batch_size": 4}  # on Toy: three experiences of twelve images, so three steps an epoch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n auto --dist loadgroup`: a file's tests stay in one process, and so do those of one strategy."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory):
    """One thread, a cache of the session's own, and no data directory from outside."""
    torch.set_num_threads(1)
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


# small runs


@pytest.fixture(scope="module")
def without_pictures():
    """TensorBoard's matrices are not drawn: that takes most of a small run's time, and test_recorders.py draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "accuracy_matrix_figure", lambda *args: None)
        patch.setattr(tensorboard, "bars_figure", lambda *args: None)
        patch.setattr(tensorboard, "to_array", lambda figure: np.zeros((1, 1, 3), np.uint8))
        yield


def backbone_for(strategy: str) -> str:
    """The smallest backbone that a strategy takes."""
    return "clip_nano" if plugins.load("strategies", strategy)().needs_text else "vit_nano"


@pytest.fixture(scope="session")
def plan() -> Callable[..., RunConfig]:
    """The configuration of a small run; `scenario` are fields of Toy, or of the scenario `on`.

    Other keywords are options and fields of the strategy.
    """

    def make(
        strategy: str, out: Path, scenario: dict[str, Any] | None = None, on: str = TOY, **given: Any
    ) -> RunConfig:
        asked = {"scenario": on, "strategy": strategy, "out": out, "precision": "fp32"}
        asked |= {"backbone": backbone_for(strategy)} | ({} if "preset" in given else SMALL) | given
        options = {name: value for name, value in asked.items() if name in config.OPTIONS}
        fields = {name: value for name, value in asked.items() if name not in options}
        fields |= {f"scenario.{name}": value for name, value in (scenario or {}).items()}
        (only,) = config.plan(options, fields, None)
        return only

    return make


@pytest.fixture(scope="session")
def evaluated() -> dict[Path, dict[tuple[str, int], int]]:
    """By the directory of a run that `finished` made: the class that its last evaluation gave a (table, row)."""
    return {}


@pytest.fixture(scope="session")
def finished(plan, evaluated) -> Callable[..., Run]:
    """Finishes a small run and reads it back; takes what `plan` takes."""

    def run(*args: Any, **given: Any) -> Run:
        last = {}

        def noted(learner: nn.Module, loader: Loader, rows: NDArray[np.int64], *others: Any) -> Predicted:
            predicted = predict_rows(learner, loader, rows, *others)
            table = loader.table.fingerprint
            last.update({(table, row): c for row, c in zip(rows.tolist(), predicted.classes.tolist(), strict=True)})
            return predicted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("clsim.loop.predict_rows", noted)
            (made,) = runner.run_all([plan(*args, **given)], quiet=True)
        evaluated.setdefault(made.directory, {}).update(last)
        return made

    return run


@pytest.fixture(scope="session")
def prepare(plan) -> Callable[..., Job]:
    """The job of a small run; takes what `plan` takes."""
    return lambda *args, **given: Job.prepare(plan(*args, **given))


@pytest.fixture
def make_loop(prepare, tmp_path) -> Callable[..., Loop]:
    """The loop of a small run, at its start, without recorders and checkpoints; `parts` hear its events."""

    def make(
        strategy: str = "linear", parts: Sequence[Part] = (), scenario: dict[str, Any] | None = None, **given: Any
    ) -> Loop:
        job = prepare(strategy, tmp_path, scenario, **given)
        learner, tower = job.learner()
        return job.loop(State(learner, job.benchmark.info, job.config.seed), tower, [*job.strategy.parts(), *parts])

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[Run], dict[str, torch.Tensor]]:
    """The final weights of a run."""
    return lambda run: checkpoint.load(run.directory / "checkpoint")["learner"]


@pytest.fixture(scope="session")
def same_run(weights) -> Callable[[Run, Run], None]:
    """Asserts that two runs ended bit-identical: matrix, metrics and weights."""

    def check(run: Run, other: Run) -> None:
        assert run.matrix == other.matrix
        assert run.metrics == other.metrics
        ours, theirs = weights(run), weights(other)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    return check


@pytest.fixture(scope="session")
def without_checksums() -> Callable[[Run], None]:
    """Makes a finished run one of an earlier version, whose files may differ from those that the run left."""

    def age(run: Run) -> None:
        (run.directory / rundir.CHECKSUMS).unlink()
        summary = {key: value for key, value in run.summary.items() if key != checksums.MARK}
        (run.directory / rundir.SUMMARY).write_text(json.dumps(summary))

    return age


# tables and files


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
def broken_off(monkeypatch) -> Callable[..., dict[str, Any]]:
    """Calls `work` and breaks it off as Ctrl-C does, where it would save once more than `saves` times.

    Returns the state that was saved last; nothing where none was.
    """

    def call(saves: int, work: Callable[[], object]) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        whole = checkpoint.save  # the patch below replaces the module's own

        def save(folder: Path, state: dict[str, Any], *name: str) -> None:
            if len(made) == saves:
                raise KeyboardInterrupt
            made.append(state)
            whole(folder, state, *name)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(runner.checkpoint, "save", save)
            work()
        return made[-1] if made else {}

    return call


@pytest.fixture
def no_download(monkeypatch) -> None:
    """timm makes models without pretrained weights, and asking for these is a failure."""
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        assert not pretrained, "nothing may be downloaded"
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
