"""What tests of all parts share: random numbers from a seed, and how exact a result is in each dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_equiv import Symmetry
from lightning_equiv.metrics.functional import Kind, error_sums
from lightning_equiv.metrics.measurement import measuring

# Of a result of size one against an exact one: rounded once (bfloat16), or some roundings long.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE[torch.float64]) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same every time."""
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@contextmanager
def global_seed(seed: int = 0) -> Iterator[None]:
    """The global generator from a seed, such as first weights are drawn from; as before when the block ends."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default dtype, such as e3nn makes its constants in; as before when the block ends."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sums_of(
    network: Any, args: Any, symmetry: Symmetry, *, num_samples: int | None, kind: Kind, **settings: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Numerators and denominators of the equivariance error of one call."""
    with measuring(network, args, symmetry, **settings) as measurement:
        return error_sums(measurement, measurement.elements(num_samples), kind)
