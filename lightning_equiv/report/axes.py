"""Axes of pictures: scales, ticks and labels."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from lightning_equiv.report.document import present

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1b1c1d"  # of text and axes alone, so that a page can put its own colour in its place
_FLOOR_DECADES = 3.0  # a floor this far below the numbers is named, not drawn


def scale(axes: Axes, which: str, values: list[float], data: dict[str, Any], *, zero: bool, span: float = 10.0) -> bool:
    """Set scale, limits and ticks of one axis, and draw the floor; whether it is logarithmic.

    Args:
        axes: matplotlib's.
        which: "x" or "y".
        values: all that will be drawn along it.
        data: of the picture; its `log` and `floor` are read.
        zero: a linear axis shows 0.
        span: the ratio of the largest to the least value from which on the axis may be logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    positive, floor = [v for v in values if v > 0], data.get("floor")
    log = bool(data.get("log")) and len(positive) > 0 and min(values) >= 0 and max(positive) >= span * min(positive)
    axis, linear = axes.xaxis if which == "x" else axes.yaxis, MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if log:
        low, high = min(positive), max(positive)
        near = floor is not None and floor > 0 and floor > low / 10**_FLOOR_DECADES
        low = min(low, floor) if floor is not None and near else low
        pad = (high / low) ** 0.05
        limits = low / pad / 1.1, high * pad
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        decades = math.log10(limits[1] / limits[0])
        if decades < 1:  # 40, 60, 80 and no more than these
            axis.set_major_locator(linear)
            axis.set_minor_locator(NullLocator())
        else:
            subs, most = ((1, 2, 5), 12) if decades < 2 else ((1,), 6)
            axis.set_major_locator(LogLocator(subs=subs, numticks=most))
            axis.set_minor_formatter(NullFormatter())
    else:
        low, high = min(values, default=0.0), max(values, default=1.0)
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        near = floor is not None and floor > 0.02 * (high - low)
        low, high = (min(low, floor), max(high, floor)) if floor is not None and near else (low, high)
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        limits = low if zero and low == 0 else low - pad, high if zero and high == 0 else high + pad
        axis.set_major_locator(linear)
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axis.set_major_formatter(FuncFormatter(tick))
    axes.grid(axis="x" if which == "x" else "y")
    if floor is not None:
        named = f"floor {tick(float(f'{floor:.2g}'), 0)}"
        line = axes.axvline if which == "x" else axes.axhline
        if near:
            line(floor, color=INK, linestyle=":", linewidth=1.3, label=named)
        else:
            axes.plot([], [], ":", color=INK, linewidth=1.3, label=f"{named}, below")
    return log


def extent(data: dict[str, Any]) -> list[float]:
    """Values and ends of intervals; an interval that ends below 0 does not make a logarithmic axis linear."""
    series = data["series"].values()
    values = [v for s in series for v in present(s["value"])]
    ends = [v for s in series for part in ("low", "high") for v in present(s.get(part))]
    return values + [v for v in ends if v > 0 or not data.get("log") or min(values, default=0.0) < 0]


def tick(value: float, _: int) -> str:
    """A tick's label: 0.01, and 10⁻⁴ beyond.

    Examples:
        >>> [tick(v, 0) for v in (0.02, 1e-4, 5e-4, 0.0, -0.5)]
        ['0.02', '10⁻⁴', '5·10⁻⁴', '0', '−0.5']
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    digits, exponent = f"{value:.3e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    number = f"{float(digits):g}".replace("-", "−")
    return power if number == "1" else f"{number}·{power}"


def short(label: str, most: int) -> str:
    """A long label with its first words as letters, as the names of layers have, or else without its middle.

    Examples:
        >>> short("encoder.layers.3.attention.out_proj", 28), short("the energy of each atom", 12)
        ('e.l.3.attention.out_proj', 'the e…h atom')
    """
    words = label.split(".")
    for i, word in enumerate(words[:-1]):
        if len(".".join(words)) > most and not word.isdigit():
            words[i] = word[:1]
    short = ".".join(words)
    return short if len(short) <= most else f"{short[: (most - 1) // 2]}…{short[-(most // 2) :]}"


def wrap(label: str) -> str:
    """A label of an axis in lines of 30 characters."""
    return "\n".join(textwrap.wrap(label, 30))
