"""Run a network a second time in one step without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_stochastic(network: nn.Module) -> Iterator[None]:
    """Inside, `network` draws no dropout, and normalises by the batch without moving its running statistics.

    The torch batch norms stay in training mode (the second pass is normalised as the first was), everything else
    goes to evaluation mode, which also catches functional dropout. Every module is put back.
    """
    norms, others = [], []
    for module in network.modules():
        if not module.training:
            continue
        if isinstance(module, _NormBase):
            norms.append((module, module.track_running_stats))
            module.track_running_stats = False
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
