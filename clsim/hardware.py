"""The machine: which device and precision a run uses, torch's settings while it runs, and how much memory it needs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from clsim.errors import RequestError


def settled(device: str, precision: str) -> tuple[str, str]:
    """Device and precision with "auto" replaced by the best that this machine has.

    Raises RequestError for a CUDA device where torch sees none.
    """
    if device == "auto":
        device = best_device()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"--device {device}: torch sees no CUDA device here")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_bf16()
        precision = "bf16" if fast else "fp32"
    return device, precision


def best_device() -> str:
    """ "cuda" where torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for matrix products in bfloat16."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


@contextlib.contextmanager
def torch_settings(threads: int | None) -> Iterator[None]:
    """Deterministic algorithms, and this number of threads unless None; then the caller's settings and random state."""
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(before)


def reset_peak_memory() -> None:
    """Set the peak to the present use, where Linux allows it: earlier runs of this process must not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """The process's largest resident memory, or the GPU's where there is one, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
