"""Stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean


def advice(
    table: Mapping[str, Mapping[int, float]],
    costs: Mapping[str, float],
    *,
    mode: str,
    reference: str = "plain",
    figure: str,
    problems: Mapping[str, str] = {},
) -> list[str]:
    """A stand-in: the way with the best mean."""
    means = {way: fmean(values.values()) for way, values in table.items()}
    best = (min if mode == "min" else max)(means, key=means.__getitem__)
    cost = f" at {costs[best]:.2g} times the cost of `{reference}`" if best in costs else ""
    return [f"`{best}` has the best mean of `{figure}`{cost}.", *(f"`{way}`: {why}." for way, why in problems.items())]
