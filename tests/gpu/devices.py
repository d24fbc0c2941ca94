"""The devices that the tests of this folder run on, and what makes the host wait for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
on_gpu = pytest.param("cuda", marks=GPU)
each_device = pytest.mark.parametrize("device", ["cpu", on_gpu])

READS = ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select", "unique")  # of the device's numbers
UPLOADS = ("lift_fresh",)  # what a tensor of Python numbers is made by


class Watch(TorchDispatchMode):
    """Remembers the operations by which a GPU would make the host wait; a generator's state is on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.uploads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not (args and isinstance(args[0], Tensor) and args[0].dtype == torch.uint8):
            self.reads += [name] * any(word in name for word in READS)
            self.uploads += [name] * any(word in name for word in UPLOADS)
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits(device: str, reads: int = 0, uploads: int = 0) -> Iterator[None]:
    """On a GPU an error where the host waits for it; on a CPU the operations that would do so are counted.

    Args:
        device: where it happens.
        reads: how many numbers the host reads by design. Where it reads some, a GPU is not watched.
        uploads: how many tensors are made of Python numbers: they stay on the host, or are sent from pinned memory.
    """
    if device == "cpu":
        with Watch() as watch:
            yield
        assert len(watch.reads) == reads, watch.reads
        assert len(watch.uploads) == uploads, watch.uploads
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default" if reads else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """What is done inside is done on another stream than what is done outside; on a CPU there is one."""
    if device == "cpu":
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)
