"""SVHN's cropped digits, train_32x32.mat and test_32x32.mat, as torchvision downloads them."""

from pathlib import Path
from typing import Any

import numpy as np

from clsim.data.arrays import image_reader, require_one_each
from clsim.data.labels import array_values
from clsim.data.raw import Raw
from clsim.data.sources import require_file, shown
from clsim.errors import RequestError

SPLITS = ("train", "test")  # extra_32x32.mat is left out


def svhn_in(folder: Path) -> list[Path]:
    """The files that are in a folder."""
    return [folder / f"{split}_32x32.mat" for split in SPLITS if (folder / f"{split}_32x32.mat").exists()]


def read_svhn(folder: Path) -> list[Raw]:
    """Training and test images. Raises RequestError that names a file that is missing or damaged."""
    return [_split(folder / f"{split}_32x32.mat", split) for split in SPLITS]


def _split(file: Path, split: str) -> Raw:
    require_file(file)
    content = _loaded(file)
    for name in ("X", "y"):
        if not isinstance(content.get(name), np.ndarray):
            raise RequestError(f"{shown(file)} has no array {name!r}")
    if content["X"].ndim != 4:
        raise RequestError(f"{shown(file)}: array 'X' has the shape {content['X'].shape}, not (H,W,3,N)")
    pixels = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
    values = array_values(f"{shown(file)}: array 'y'", content["y"])
    require_one_each(file, "'X'", len(pixels), "'y'", len(values))
    left_out = {"not read": (shown(file.with_name("extra_32x32.mat")),)} if split == "train" else {}
    return Raw(
        split=split,
        read=image_reader(f"{shown(file)}: array 'X'", pixels),
        names=[f"{file.name}[{i}]" for i in range(len(pixels))],
        labels=[(file, np.where(values == 10, 0, values))],  # the authors number the digit 0 as 10
        what="array 'y'",
        files=[file],
        settings=(split,),
        left_out=left_out if file.with_name("extra_32x32.mat").exists() else {},
        notes=("the files of SVHN, as torchvision downloads them",),
    )


def _loaded(file: Path) -> dict[str, Any]:
    """The arrays X and y. Raises RequestError if the file is damaged."""
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(file, variable_names=["X", "y"])
    except Exception as error:  # damaged files end in many kinds of errors
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"{shown(file)} cannot be read as a .mat file; it is truncated or damaged ({why})"
        ) from error
    return content
