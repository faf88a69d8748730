"""OpenMP's threads sleep while they wait, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from clsim import openmp

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, str(openmp.SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}, "0"),
    ],
)
def test_what_the_user_has_set_stays(given, spins, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    openmp.let_threads_sleep()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    "code",
    ["import clsim; clsim.Strategy", "from clsim.cli import main; main(['--version']); import torch"],
    ids=["package", "command"],
)
def test_the_setting_is_there_before_torch(code):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    watched = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch:", os.environ.get("GOMP_SPINCOUNT"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
{code}
"""
    done = subprocess.run([sys.executable, "-c", watched], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"torch: {openmp.SPINS}"
