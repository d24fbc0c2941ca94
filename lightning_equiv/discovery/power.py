"""How small a deviation a test would have found: data made symmetric, and a share of them put into one orientation."""

from __future__ import annotations

import math

import torch
from scipy.stats import norm
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.exact_test import halves
from lightning_equiv.discovery.witness import chosen_ridge, whitening

SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
_REPETITIONS = 20
_FOUND = 0.8
_COLUMNS = 16  # copies of an input, from which the spread is estimated


def least_share(table: Tensor, canonical: Tensor, level: float, seed: int) -> float | None:
    """The least share of inputs in one orientation, among symmetric data, that the test finds four times of five.

    Args:
        table: (units, 1 + copies, features) of the data, from which symmetric data are drawn.
        canonical: (units, features) of the data turned into one orientation.
        level: of the test, corrected for the number of tests.
        seed: of the draws.

    Returns:
        One of `SHARES`; None where not even all inputs in one orientation are found.
    """
    units, columns = table.shape[:2]
    train, tested = halves(units, seed)
    own = whitening(table[train])
    ridge = chosen_ridge(table[train], own)
    least = norm.isf(level)
    few = table[tested, :_COLUMNS]
    mean, rows = table.mean(1), torch.arange(units)
    for share in SHARES:
        found = 0
        for k in range(_REPETITIONS):
            generator = derived_generator("power", seed, share, k)
            column = torch.randint(columns, (units,), generator=generator)
            turned = torch.rand(units, generator=generator) < share
            data = torch.where(turned[:, None], canonical, table[rows, column])
            w = own.direction((data - mean)[train].mean(0), ridge)
            scores = few @ w
            spread = math.sqrt(float(scores.var(1, correction=0).sum())) / len(tested)
            shift = float((data[tested] @ w - scores.mean(1)).mean())
            found += spread > 0 and shift > least * spread
        if found >= _FOUND * _REPETITIONS:
            return share
    return None
