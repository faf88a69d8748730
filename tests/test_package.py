"""What is shipped: a wheel has the plug-ins, the bundled weights and the mark of a typed package."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="a wheel is built with setuptools")
def test_the_wheel_has_everything_that_a_run_needs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("clsim", "scenarios", "strategies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("clsim-*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    weights = {f"clsim/backbones/weights/{path.name}" for path in (ROOT / "clsim/backbones/weights").iterdir()}
    files = [path for kind in ("scenarios", "strategies") for path in (ROOT / kind).glob("*.py")]
    plug_ins = {f"clsim/{path.relative_to(ROOT)}" for path in files}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "clsim").rglob("*.py")}
    page = {f"clsim/recorders/report/page.{ending}" for ending in ("html.j2", "css", "js")}
    assert weights and {"clsim/py.typed"} | weights | plug_ins | modules | page <= shipped
