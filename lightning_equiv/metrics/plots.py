"""Pictures that metrics draw of themselves, on figures of their own: nothing is left open in pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_equiv.metrics.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDED = "pictures need matplotlib: pip install 'lightning_equiv[report]'"
_COLOR = "#0072b2"
_MOST_LAYERS = 40


def check_drawing() -> None:
    """Raise an ImportError that says what to install where there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401  # whether it is there
    except ImportError as error:
        raise ImportError(NEEDED) from error


def new_axes(axes: Axes | None, height: float = 3.2) -> tuple[Figure, Axes]:
    """The figure and axes to draw on: those that were given, or new ones.

    Args:
        axes: None makes a figure that pyplot does not know and nobody has to close.
        height: of a new figure, in inches.

    Raises:
        ImportError: there is no matplotlib.
    """
    if axes is not None:
        given: Any = axes.get_figure()
        return given, axes
    check_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def as_intervals(values: Mapping[str, Any]) -> dict[str, Interval]:
    """What `compute` or `intervals` returned, as intervals; those of plain values are as wide as nothing."""
    return {
        name: value if isinstance(value, Interval) else Interval(float(value), float("nan"), float("nan"))
        for name, value in values.items()
    }


def draw_curve(axes: Axes, xs: Sequence[float], found: Sequence[Interval], x_label: str, y_label: str) -> None:
    """Values along x with their intervals as a band."""
    values, low, high = zip(*found, strict=True)
    axes.fill_between(xs, low, high, color=_COLOR, alpha=0.18, linewidth=0)
    axes.plot(xs, values, "o-", color=_COLOR, markersize=4)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)


def draw_shares(axes: Axes, found: Mapping[str, Interval], x_label: str, y_label: str) -> None:
    """Shares of a whole as points on a logarithmic axis, with their intervals; what is not above 0 is left out."""
    kept = {i: share for i, share in enumerate(found.values()) if share.value > 0}
    least = min((share.value for share in kept.values()), default=1.0)
    for i, share in kept.items():
        low = share.low if share.low > 0 else min(share.value, least / 3)  # an interval that reaches 0 has no end
        axes.plot([i, i], [low, share.high], color=_COLOR, alpha=0.4, linewidth=4, solid_capstyle="butt")
    axes.plot(list(kept), [share.value for share in kept.values()], "o", color=_COLOR, markersize=5)
    if kept:
        axes.set_yscale("log")
    axes.set_xticks(range(len(found)), list(found), rotation=40 if len(found) > 10 else 0)
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.2)


def layers_height(layers: int) -> float:
    """Inches of a picture of so many layers."""
    return 1.2 + 0.2 * min(layers, _MOST_LAYERS)


def draw_layers(axes: Axes, shares: Mapping[str, float], remainder: float) -> None:
    """Signed shares as lying bars, the first layer on top; of very many layers those with the largest shares."""
    largest = sorted(shares, key=lambda name: -abs(shares[name]))[:_MOST_LAYERS]
    kept = [name for name in shares if name in largest]
    axes.barh(range(len(kept)), [shares[name] for name in kept], color=_COLOR)
    axes.axvline(0.0, color="black", linewidth=0.7)
    axes.set_yticks(range(len(kept)), kept, parse_math=False)
    axes.set_ylim(max(len(kept), 1) - 0.5, -0.5)
    axes.set(xlabel=f"share of the network's error (remainder {remainder:.2g})")
    axes.grid(axis="x", alpha=0.2)
