"""`clsim pretrain`: make a bundled backbone again, from the start.

The same command on the same machine with the same thread count writes the same file; interrupted, it goes on from
its last checkpoint when repeated.
"""

from pathlib import Path
from typing import Any

from clsim import config
from clsim.data.streams import DataAccess
from clsim.errors import unknown


def main(name: str, *, data_dir: Path | None, out: Path, fields: dict[str, Any]) -> Path:
    """Pretrain the backbone `name` into `out`/pretrain/`name`; the weights file. Raises RequestError."""
    from clsim.pretrain import clip_micro, vit_micro

    jobs: dict[str, Any] = {"vit_micro": vit_micro, "clip_micro": clip_micro}
    if name not in jobs:
        raise unknown("backbone to pretrain", name, jobs)
    recipe = config.make(jobs[name].Recipe, fields, name)
    access = DataAccess(data_dir, config.cache_dir(), side=32)
    weights: Path = jobs[name].pretrain(recipe, access, out / "pretrain" / name)
    return weights
