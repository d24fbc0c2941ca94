"""Confidence intervals of ratios of sums over inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95


class Interval(NamedTuple):
    """A figure with its 95 % confidence interval; NaN bounds where there are too few inputs for one."""

    value: float
    low: float
    high: float


def moments(numerator: Tensor, denominator: Tensor) -> Tensor:
    """(6,) sums over inputs from which `ratio_interval` is made: n, A, B, A^2, A B, B^2, in the inputs' precision.

    Args:
        numerator: (n,) A.
        denominator: (n,) B.
    """
    a, b = numerator, denominator
    return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b]).sum(-1)


def ratio_interval(sums: Tensor, root: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    r"""r = sum A / sum B and its 95 % confidence interval, where the inputs are the independent units.

        se(r)^2 = n / (n - 1) sum (A - r B)^2 / (sum B)^2,    r +- t se(r),   t of Student's law with n - 1 degrees

    What is drawn for one input (group elements) is nested in its A, so that more draws make no more units.

    Args:
        sums: (..., 6) of `moments`, added over batches and ranks.
        root: of sqrt(r) in the place of r; its bounds are the roots of those of r.

    Returns:
        Value, lower and upper bound (...); the bounds are NaN for fewer than two inputs. A r that cannot be negative
        (`root`) has bounds that are not.

    Examples:
        >>> a = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64)
        >>> [round(float(v), 3) for v in ratio_interval(moments(a, torch.ones_like(a)))]
        [2.0, 0.701, 3.299]
    """
    n, a, b, aa, ab, bb = sums.unbind(-1)
    r = torch.where(a == 0, 0.0, a / b)
    square = (aa - 2 * r * ab + r * r * bb).clamp_min(0) * n / (n - 1) / (b * b)
    square = torch.where(a == 0, aa * 0, square)
    square = torch.where((bb == 0) & (b != 0), torch.nan, square)  # squares below the smallest number
    t = torch.as_tensor(stdtrit((n - 1).clamp_min(1).cpu().numpy(), (1 + LEVEL) / 2)).to(r)
    half = torch.where(n > 1, t * square.sqrt(), torch.nan)
    if not root:
        return r, r - half, r + half
    return r.sqrt(), (r - half).clamp_min(0).sqrt(), (r + half).sqrt()


def interval(numerator: Tensor, denominator: Tensor | None = None, *, root: bool = False) -> Interval:
    """The interval of sum A / sum B (or its root) from the values of every input; of the mean of A without B."""
    denominator = torch.ones_like(numerator) if denominator is None else denominator
    return Interval(*(float(x) for x in ratio_interval(moments(numerator.double(), denominator.double()), root)))
