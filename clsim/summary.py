"""The result files of a finished run: its matrix, metrics, costs and provenance."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clsim import checkpoint, checksums, provenance, rundir
from clsim.backbones.features import FeatureBank
from clsim.backbones.load import Backbone
from clsim.config import RunConfig
from clsim.data.streams import Benchmark
from clsim.hardware import peak_memory, uses_tf32
from clsim.learner import learner_state
from clsim.loop import Loop
from clsim.metrics import Measures


def matrix(loop: Loop) -> dict[str, Any]:
    """The integer counts of every evaluation, without times."""
    s, tests = loop.state, loop.benchmark.test_stream
    names = s.info.class_names
    found: dict[str, Any] = {
        "correct": s.correct,
        "total": s.total,
        "experiences": [experience.name for experience in tests],
        "classes": [[names[c] for c in experience.classes] for experience in tests],
        "before": s.has_baseline_row,
    }
    if s.confusion is not None:
        found["confusion"] = {"target": s.confusion.tolist()}
    if s.task_correct:
        found["task_correct"] = s.task_correct
    if s.anytime:
        found["anytime"] = s.anytime
    return found


def summary(loop: Loop, measured: Measures, cost: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """`names`: the run's scenario, strategy, backbone, seed, config_hash and code."""
    warnings = [*loop.strategy.caveats(), *loop.strategy.lacks(loop.state.info)]
    caveats = {f"caveat {i + 1}": text for i, text in enumerate(warnings)}
    return {
        **names,
        "protocol": loop.rules.name,
        "metrics": measured.values,
        "task_accuracy": loop.task_accuracy(),
        "cost": cost,
        "bank_seconds": bank_seconds(loop),
        "seconds": loop.cost.seconds_training + loop.cost.seconds_evaluation,
        "notes": measured.notes | caveats,
    }


def write(directory: Path, loop: Loop, described: dict[str, Any]) -> None:
    """Write matrix.json, checksums.json, then summary.json: if summary.json exists, the run has finished.

    Every other file of the run must be complete.
    """
    checkpoint.write_text(directory / rundir.MATRIX, json.dumps(matrix(loop)))
    text = json.dumps(described | {checksums.MARK: True}, indent=1)
    checkpoint.write_text(directory / rundir.CHECKSUMS, checksums.text_for(directory, {rundir.SUMMARY: text}))
    checkpoint.write_text(directory / rundir.SUMMARY, text)


def costs(loop: Loop, backbone: Backbone) -> dict[str, float | int | None]:
    """The run's costs: seconds, images of the stream per second, numbers of parameters, bytes.

    `stored_parameters` counts the learner's own tensors, without the frozen towers, which all learners share.
    `stored_bytes_per_experience` is the bytes of these plus `memory_bytes` (images, logits, importances and copies of
    weights that parts keep), divided by the number of experiences in the stream.
    """
    learner, spent = loop.state.learner, loop.cost
    kept = learner_state(learner).values()
    memory = sum(part.stored_bytes for part in (loop.strategy, *loop.parts))
    return {
        "seconds_training": spent.seconds_training,
        "seconds_evaluation": spent.seconds_evaluation,
        "images_per_second": spent.images / max(spent.seconds_training, 1e-9) if loop.state.step else None,
        "trainable_parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "stored_parameters": sum(t.numel() for t in kept),
        "backbone_parameters": sum(p.numel() for tower in backbone.towers() for p in tower.parameters()),
        "memory_bytes": memory,
        "stored_bytes_per_experience": (sum(t.nbytes for t in kept) + memory) / loop.state.info.num_experiences,
        "peak_memory_bytes": peak_memory(),
    }


def bank_seconds(loop: Loop) -> float:
    """Seconds that the frozen features took which this run reads, whichever run computed them; 0 if it reads none.

    Every run that shares a bank reports the same, as if it were alone; `seconds` has none of it.
    """
    wanted: dict[Path, tuple[FeatureBank, list[NDArray[np.int64]]]] = {}

    def reads(banks: Sequence[object], rows: Sequence[NDArray[np.int64]]) -> None:
        for bank in banks:
            if isinstance(bank, FeatureBank):
                wanted.setdefault(bank.folder, (bank, []))[1].extend(rows)

    loader = loop.train_loader
    for learned in loop.benchmark.train_stream:
        reads(loader.views or [loader.bank], [learned.rows])
        reads([loader.bank], [learned.rows] if learned.unlabelled is None else [learned.rows, learned.unlabelled])
    for tested in loop.benchmark.test_stream:
        reads([loop.test_loaders[tested.table.fingerprint].bank], [tested.rows])
    return sum(bank.seconds(np.concatenate(rows)) for bank, rows in wanted.values())


def environment(config: RunConfig, benchmark: Benchmark, weights: str) -> dict[str, Any]:
    """Versions, code, device and data: the provenance of the results. `weights` is the tower's fingerprint."""
    packages: Sequence[str] = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scikit-learn")
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    gpu = config.device.startswith("cuda")
    return {
        "clsim": version("clsim"),
        "code": provenance.code_digest(),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "tf32": uses_tf32() if gpu else None,
        "weights": weights,
        "plugins": config.identities(),
        "image_size": list(benchmark.test_table.images.shape[2:]),
        "tables": [benchmark.train_table.fingerprint, benchmark.test_table.fingerprint],
        "class_order": [list(experience.classes) for experience in benchmark.train_stream],
    }
