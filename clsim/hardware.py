"""The machine: a run's device and precision, torch's settings during the run, and the memory it needs."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clsim.errors import RequestError

MEMORY: Any = torch.utils.deterministic  # its types do not have its only setting
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
LARGEST_KEPT = 32 << 20  # bytes of a buffer, the most that glibc allows
KEPT = 512 << 20  # bytes at the end of the heap


def settled(device: str, precision: str) -> tuple[str, str]:
    """Device and precision with "auto" replaced by the best that this machine has.

    Raises RequestError for a CUDA or Apple device if torch finds none.
    """
    if device == "auto":
        device = best_device()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"--device {device}: torch finds no CUDA device on this machine")
    if device == "mps" and not torch.backends.mps.is_available():
        raise RequestError("--device mps: torch finds no Apple GPU on this machine")
    if precision == "auto":
        fast = gpu_has_bf16() if device.startswith("cuda") else cpu_has_bf16()
        precision = "bf16" if fast else "fp32"
    return device, precision


def best_device() -> str:
    """ "cuda" if torch finds a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_has_bf16() -> bool:
    """Whether the GPU computes in bfloat16 itself; older ones only imitate it, slowly."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for matrix products in bfloat16."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


@contextlib.contextmanager
def torch_settings(threads: int | None) -> Iterator[None]:
    """Use deterministic algorithms and `threads` threads (None: unchanged); restore settings and random state after.

    On GPUs float32 means float32: products of matrices and convolutions do not use TF32, which has 10 bits of 23.
    """
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled, (products, cudnn) = MEMORY.fill_uninitialized_memory, (torch.backends.cuda.matmul, torch.backends.cudnn)
    rounded = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True)
        MEMORY.fill_uninitialized_memory = False  # each buffer would be written twice
        products.allow_tf32 = cudnn.allow_tf32 = False
        cudnn.benchmark = False  # it chooses kernels by their time, which is never the same
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            MEMORY.fill_uninitialized_memory = filled
            torch.set_num_threads(before)
            products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = rounded


def keep_freed_memory() -> None:
    """Let glibc keep large buffers that are freed, for the next step, as far as there is a glibc.

    Otherwise it returns each of them to the kernel, which maps and zeroes it again when the next step asks for it. The
    setting stays for the process.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such function in other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def uses_tf32() -> bool:
    """Whether float32 products or convolutions on a GPU may be rounded to TF32."""
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses."""
    return int(torch.cuda.mem_get_info(device)[0])


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's whole memory."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def reset_peak_memory() -> None:
    """Reset the peak to the present use, if Linux allows it: earlier runs of this process must not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """The peak resident memory of the process, or of the GPU if there is one, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
