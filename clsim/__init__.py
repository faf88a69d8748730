"""clsim: continual learning and domain adaptation on frozen transformers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsim.version import VERSION as __version__

if (Path(__file__).parents[1] / "pyproject.toml").is_file():
    # a checkout: scenarios/ and strategies/ are next to the package but import as clsim.scenarios and clsim.strategies
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from clsim import compare as compare
    from clsim.backbones.load import Backbone
    from clsim.data.batches import Batch
    from clsim.data.streams import ExperienceInfo, Scenario, StreamInfo
    from clsim.events import Part, State, Step
    from clsim.outputs import Outputs
    from clsim.runner import load, run
    from clsim.strategy import Strategy

__all__ = [
    "Backbone",
    "Batch",
    "ExperienceInfo",
    "Outputs",
    "Part",
    "Scenario",
    "State",
    "Step",
    "Strategy",
    "StreamInfo",
    "__version__",
    "compare",
    "load",
    "run",
]

_HOME = {
    "Backbone": "clsim.backbones.load",
    "Batch": "clsim.data.batches",
    "ExperienceInfo": "clsim.data.streams",
    "Outputs": "clsim.outputs",
    "Part": "clsim.events",
    "State": "clsim.events",
    "Step": "clsim.events",
    "Strategy": "clsim.strategy",
    "StreamInfo": "clsim.data.streams",
    "Scenario": "clsim.data.streams",
    "run": "clsim.runner",
    "load": "clsim.runner",
}


def __getattr__(name: str) -> Any:
    # late, so that `clsim --help` does not wait for torch
    if name == "compare":  # a module that can be called
        from importlib import import_module

        return import_module("clsim.compare")
    if name not in _HOME:
        raise AttributeError(f"module 'clsim' has no attribute {name!r}")
    from importlib import import_module

    from clsim import openmp

    openmp.let_threads_sleep()
    return getattr(import_module(_HOME[name]), name)
