"""torch's settings during a run, and the memory that a process keeps."""

import platform
import subprocess
import sys

import pytest
import torch

from clsim.hardware import settled, torch_settings, uses_tf32


@pytest.mark.parametrize("filled", [True, False])
def test_settings_are_put_back(filled, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", filled)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state()
    with torch_settings(before[0] + 1):
        assert torch.get_num_threads() == before[0] + 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert not uses_tf32() and not torch.backends.cudnn.benchmark
        torch.rand(3)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert torch.utils.deterministic.fill_uninitialized_memory is filled
    assert uses_tf32()


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_chosen_where_a_gpu_computes_in_it_itself(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert settled("auto", "auto") == ("cuda", "bf16" if native else "fp32")


FAULTS = """
import resource
import numpy as np
from clsim import hardware

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    large = [np.ones(2 << 20) for _ in range(3)]  # 16 MiB each
    del large

{set}
step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again():
    def faults(setting):
        code = FAULTS.format(set=setting)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert faults("") > 5000  # 120,000 pages of 4 KiB, or huge pages in part
    assert faults("hardware.keep_freed_memory()") < 100
