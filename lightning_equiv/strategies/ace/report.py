"""What ACE says of every layer when training is over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lightning_equiv.layers.branch import Branch
from lightning_equiv.strategies.keeping_callback import Report


def ranked(branches: Sequence[Branch], lam: Tensor, threshold: float) -> Report:
    """lambda and gamma of every layer, None where that is no number; the layer that pays most comes first."""
    rows = [(b, float(b.theta), price) for b, price in zip(branches, lam.tolist(), strict=True)]
    rows.sort(key=lambda row: abs(row[2]) if math.isfinite(row[2]) else math.inf, reverse=True)
    return [
        {"layer": b.layer.name, "lambda": number(price), "gamma": number(gamma), "strict": b.is_strict(threshold)}
        for b, gamma, price in rows
    ]


def number(x: float) -> float | None:
    """What JSON can hold."""
    return x if math.isfinite(x) else None


def format_report(who: str, report: Report) -> str:
    """The report in words."""
    lines = [
        f"  {v['layer']}: lambda {words(v['lambda'])}, gamma {words(v['gamma'])}{', strict' if v['strict'] else ''}"
        for v in report
    ]
    return "\n".join([f"{who}, what every layer pays for its symmetry:", *lines])


def words(x: float | None) -> str:
    """A number with four digits."""
    return "not a number" if x is None else f"{x:+.4g}"
