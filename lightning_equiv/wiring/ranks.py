"""What the processes of a distributed training do together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes may be training."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_rank() -> int:
    """This process's number under distributed training, 0 elsewhere: a part of every key of `derived_generator`."""
    return torch.distributed.get_rank() if is_distributed() else 0


def num_processes() -> int:
    """How many processes train together; 1 without distributed training."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def gathered(value: Any, group: Any = None) -> list[Any]:
    """The picklable value of every process, in the order of their ranks.

    Args:
        value: of this process.
        group: of torch.distributed; None takes all processes.
    """
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group)
    return values


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over processes, with its gradient; x itself where there is one."""
    if not is_distributed():
        return x
    mean: Tensor = _MeanOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return mean


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _MeanOverRanks.forward(ctx, gradient)
