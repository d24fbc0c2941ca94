"""Run a network a second time in one step without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_randomness(network: nn.Module) -> Iterator[None]:
    """Inside, `network` draws no dropout, and normalises by the batch without moving its running statistics.

    Batch norms, torch's and other modules with "Norm" in their name and buffers, stay in training mode (the second pass
    is normalised as the first was); everything else goes to evaluation mode, which also catches functional dropout.
    Every module is put back.
    """
    norms, others, buffers = [], [], []
    for module in network.modules():
        if not module.training:
            continue
        if isinstance(module, _NormBase):
            norms.append((module, module.track_running_stats))
            module.track_running_stats = False
        elif "norm" in type(module).__name__.lower() and not type(module).__module__.startswith("torch."):
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    buffers.append((module, name, buffer))
                    module._buffers[name] = buffer.clone()
        else:
            others.append(module)
            module.training = False
    try:
        yield
    finally:
        for module in others:
            module.training = True
        for norm, tracked in norms:
            norm.track_running_stats = tracked
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
