"""Stand-in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtr, stdtrit


class Difference(NamedTuple):
    """How far one way is from another."""

    way: str
    other: str
    value: float
    low: float
    high: float
    p: float
    seeds: int
    relative: bool


def paired_difference(
    table: Mapping[str, Mapping[int, float]], way: str, other: str, *, relative: bool, level: float = 0.95
) -> Difference:
    """A stand-in: Student's interval, of logarithms where it is relative."""
    seeds = [seed for seed in table[way] if seed in table[other]]
    pairs = [(table[way][s], table[other][s]) for s in seeds]
    gaps = [math.log(a / b) if relative else a - b for a, b in pairs]
    n, mean = len(gaps), fmean(gaps)
    low = high = p = math.nan
    if n > 1:
        error = stdev(gaps) / math.sqrt(n)
        half = float(stdtrit(n - 1, (1 + level) / 2)) * error
        low, high = mean - half, mean + half
        p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else 0.0
    if relative:
        mean, low, high = (math.expm1(v) for v in (mean, low, high))
    return Difference(way, other, mean, low, high, p, n, relative)
