"""Paths in the names of users' plug-ins: a run is read back from any directory."""

import re
from pathlib import Path
from typing import Any

from clsim import plugins


def found_near(value: Any, directory: Path, is_file: bool) -> Any:
    """A relative path, or a plug-in's name that begins with one, with the nearest parent of `directory` that has it.

    The run directory is usually inside the folder from which the run was started. `is_file`: it is the path of a file.
    """
    if isinstance(value, list | tuple):
        return [found_near(each, directory, is_file) for each in value]
    path = (value if is_file else plugins.path_in(value)) if isinstance(value, str) else None
    if path is not None and not Path(path).is_absolute():
        for parent in directory.absolute().parents:
            if (parent / path).is_file():
                return f"{parent / path}{value[len(path) :]}"
    return value


def absolute(name: str) -> str:
    """A plug-in's name with the absolute path of its file: it must be found again from other directories."""
    path = plugins.path_in(name)
    if path is None:
        return name
    whole = str(Path(path).expanduser().absolute())
    return name if re.search(r"[,\[\]]", whole) else f"{whole}{name[len(path) :]}"
