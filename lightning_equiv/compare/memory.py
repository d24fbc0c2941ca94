"""The peak of memory in one run."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

_MIB = 1 << 20


def forget_peak() -> None:
    """Begin a new peak: of the GPU, and of the process where the kernel allows it (Linux)."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """MiB since `forget_peak`: of a GPU what torch held there, else of the process, everything that it has loaded."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (_MIB if sys.platform == "darwin" else 1024)
