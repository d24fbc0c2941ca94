"""Pictures of a document on matplotlib's axes, readable at the width of a phone and on any background."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_equiv.report.axes import INK, extent, scale, short, tick, wrap
from lightning_equiv.report.document import Picture, present, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Hues of Okabe and Ito, the light ones darkened, and two more: each has a contrast of 3 to white and to near-black.
PALETTE = ("#0072b2", "#d55e00", "#008f68", "#b8649a", "#b07a00", "#2f8fc4", "#7b61c4", "#7d7d7d")
# A curve under another shows in its gaps; where the colours begin again, the dash is another.
DASHES = ("-", (0, (5, 2)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)), (0, (9, 1.5)))
MARKERS = "os^DvpX<>"  # one more than colours: where these begin again, the marker is another
WIDTH = 4.3  # inches of a panel: at 360 pixels its letters are 11 pixels high
_COLUMNS = 2  # of a figure: at the 690 pixels of a page its letters are 10 pixels high
_DOTS_PER_INCH = 150
_FONT_SIZE = 9.5
_LONGEST = 28  # characters of a label beside a lying bar; below a standing one, two thirds
_LEGEND = 53  # characters beside each other in a legend, of which a handle takes seven

_STYLE = {
    "font.family": ["DejaVu Sans"],  # matplotlib brings it: the same picture everywhere
    "font.size": _FONT_SIZE,
    "axes.titlesize": _FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.labelsize": _FONT_SIZE,
    "legend.fontsize": _FONT_SIZE - 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.borderaxespad": 0.2,
    "legend.labelcolor": INK,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": _FONT_SIZE - 0.5,
    "ytick.labelsize": _FONT_SIZE - 0.5,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.2,
    "text.parse_math": False,  # a dollar in a layer's name is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning_equiv",
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and what the pictures change of them, whatever the user has set.

    Raises:
        ImportError: there is no matplotlib.
    """
    try:
        import matplotlib.style
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lightning_equiv[report]'") from error
    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure(pictures: Sequence[Picture], one_legend: bool = False) -> Figure:
    """All of some pictures, at most two in a row, each under its title.

    Args:
        pictures: of any kinds.
        one_legend: above all of them, which have the same series; else each has its own.

    Raises:
        ImportError: there is no matplotlib.
    """
    with style():
        from matplotlib.figure import Figure

        labels = list(dict.fromkeys(name for picture in pictures for name in picture.data["series"]))
        one_legend = one_legend and len(labels) > 1
        rows = [pictures[i : i + _COLUMNS] for i in range(0, len(pictures), _COLUMNS)]
        heights = [max(height(picture, legend=not one_legend) for picture in row) + 0.3 for row in rows]
        columns = max(map(len, rows), default=1)
        beside = _columns(labels, most=len(labels), room=_LEGEND * columns) if one_legend else 1
        above = 0.205 * math.ceil(len(labels) / beside) + 0.15 if one_legend else 0.0
        whole = Figure(figsize=(WIDTH * columns, sum(heights) + above or 1.0), layout="constrained")
        if rows:
            parts: Any = whole.subfigures(2, 1, height_ratios=[above, sum(heights)]) if one_legend else (None, whole)
            top, body = parts
            # Panels of their own: the long labels of one take no room from the others.
            panels = body.subfigures(len(rows), columns, squeeze=False, height_ratios=heights)
            handles: dict[str, Any] = {}
            for part, picture in zip(panels.flat, pictures, strict=False):
                axes = part.subplots()
                draw(picture, axes, title=picture.title, legend=not one_legend)
                handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            if top is not None:
                top.legend(list(handles.values()), list(handles), loc="center left", ncols=beside)
            whole.draw_without_rendering()  # lays it out, and formats its ticks, while this style holds
        return whole


def save_png(figure: Figure, path: str | Path | IO[bytes]) -> None:
    """Write a figure as a PNG of 256 colours, which its few hues do not exceed to the eye: a third of the bytes.

    Args:
        figure: matplotlib's.
        path: of the file, or an open one.
    """
    from PIL import Image  # matplotlib needs it, too

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    colours = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(path, format="PNG", optimize=True, dpi=(_DOTS_PER_INCH, _DOTS_PER_INCH))


def panel(picture: Picture) -> Figure:
    """One picture.

    Raises:
        ImportError: there is no matplotlib.
    """
    with style():
        from matplotlib.figure import Figure

        whole = Figure(figsize=(WIDTH, height(picture)), layout="constrained")
        draw(picture, whole.subplots())
        return whole


def height(picture: Picture, legend: bool = True) -> float:
    """Inches that a panel takes: lying bars grow with their number, and a legend with its rows."""
    data, series = picture.data, picture.data["series"]
    lines = [data["line_label"]] if data.get("line_label") and data.get("lines") else data.get("lines", {})
    labels = [*series, *lines, *(["floor 3.2·10⁻⁷, below"] if data.get("floor") is not None else [])]
    rows = len(labels) if picture.kind == "distribution" else math.ceil(len(labels) / _columns(labels))
    above = 0.2 * max(rows - 2, 0) if legend else -0.4
    if picture.kind == "bars" and data.get("horizontal"):
        return 1.0 + len(data["labels"]) * max(0.21, 0.13 * len(series)) + above
    return 3.0 + above


def draw(picture: Picture, axes: Axes, title: str | None = None, legend: bool = True) -> None:
    """Draw a picture; its legend lies above the axes, where it hides nothing.

    Args:
        picture: of any kind.
        axes: matplotlib's.
        title: above the legend.
        legend: whether there is one.
    """
    _DRAW[picture.kind](axes, picture.data)
    handles, labels = axes.get_legend_handles_labels()
    rows = 0
    if legend and len(labels) > 1:
        last = sorted(range(len(labels)), key=lambda i: labels[i].startswith("floor"))
        handles, labels = [handles[i] for i in last], [labels[i] for i in last]
        columns = _columns(labels)
        rows = math.ceil(len(labels) / columns)
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, columnspacing=1.2)
    if title is not None:
        axes.set_title(title, loc="left", pad=6 + (14.6 * rows + 3 if rows else 0))


def _columns(labels: list[str], most: int = 3, room: int = _LEGEND) -> int:
    """Of a legend: as many as fit beside each other; one column has the first labels, the next those that follow."""
    for columns in range(min(most, len(labels)), 1, -1):
        fewest, more = divmod(len(labels), columns)
        starts = [i * fewest + min(i, more) for i in range(columns + 1)]
        longest = [max(map(len, labels[a:b])) for a, b in pairwise(starts)]
        if sum(longest) + 7 * columns <= room:
            return columns
    return 1


def _bars(axes: Axes, data: dict[str, Any]) -> None:
    labels, series, lying = [str(label) for label in data["labels"]], data["series"], bool(data.get("horizontal"))
    values = extent(data)
    which = "x" if lying else "y"
    log = scale(axes, which, values, data, zero=True)
    bottom = (axes.get_xlim() if lying else axes.get_ylim())[0] if log else 0.0
    width = 0.78 / len(series)
    for i, (name, s) in enumerate(series.items()):
        color, offset = PALETTE[i % len(PALETTE)], (i - (len(series) - 1) / 2) * width
        kept = [k for k, v in enumerate(s["value"]) if present([v]) and (v > 0 or not log)]
        places, heights = [k + offset for k in kept], [s["value"][k] for k in kept]
        if log:  # a bar has no length where there is no zero: a point on a stem
            (axes.hlines if lying else axes.vlines)(places, bottom, heights, color=color, alpha=0.45, linewidth=1.2)
            points = (heights, places) if lying else (places, heights)
            axes.plot(*points, MARKERS[i % len(MARKERS)], color=color, markersize=5.5, label=name)
        else:
            hatch = (None, "////", "\\\\\\\\", "xxxx")[i % 4]
            fill = {"facecolor": "none", "hatch": hatch} if hatch else {"facecolor": color}
            bars: dict[str, Any] = {"label": name, "edgecolor": color, "linewidth": 0.8, **fill}
            (axes.barh if lying else axes.bar)(places, heights, width * 0.88, **bars)
        if s.get("low") and s.get("high"):
            spans = [(k + offset, s["low"][k], s["high"][k]) for k in kept]
            spans = [span for span in spans if len(present(span)) == 3]
            if spans:
                at, low, high = (list(part) for part in zip(*spans, strict=True))
                low = [max(v, bottom) for v in low] if log else low
                whisker: dict[str, Any] = (
                    {"color": color, "linewidth": 2.6} if log else {"color": INK, "linewidth": 1.1}
                )
                (axes.hlines if lying else axes.vlines)(at, low, high, **whisker)
    if any(value < 0 for value in values):
        (axes.axvline if lying else axes.axhline)(0.0, color=INK, linewidth=0.7)
    _label_bars(axes, labels, lying)
    names, measured = data.get("x_label", ""), wrap(data.get("y_label", ""))
    axes.set(xlabel=measured if lying else names, ylabel=names if lying else measured)


def _label_bars(axes: Axes, labels: list[str], lying: bool) -> None:
    if lying:
        shorts = [short(label, _LONGEST) for label in labels]
        axes.set_yticks(range(len(labels)), shorts)
        if max(map(len, shorts), default=0) > 20:
            axes.tick_params(axis="y", labelsize=_FONT_SIZE - 1)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first one on top
        return
    every = math.ceil(len(labels) / 24)
    shorts = [short(label, 2 * _LONGEST // 3) for label in labels][::every]
    neighbours = max((len(a) + len(b) for a, b in pairwise(shorts)), default=0)
    crowded = len(shorts) * (neighbours / 2 + 2) > 46
    axes.set_xticks(range(0, len(labels), every), shorts)
    if crowded:
        for text in axes.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(labels) - 0.4)


def _curve(axes: Axes, data: dict[str, Any]) -> None:
    xs, series, lines = data["x"], data["series"], data.get("lines", {})
    values = extent(data)
    log = scale(axes, "y", values, data, zero=True)
    colors = dict(zip(series, (PALETTE[i % len(PALETTE)] for i in range(len(series))), strict=True))
    for i, (name, s) in enumerate(series.items()):
        known = [(x, v) for x, v in zip(xs, s["value"], strict=True) if v is not None]  # the line goes on over others
        ys = [math.nan if not present([v]) or (log and v <= 0) else v for _, v in known]
        if s.get("low") and s.get("high"):
            low, high = ([math.nan if v is None else v for v in s[part]] for part in ("low", "high"))
            axes.fill_between(xs, low, high, color=colors[name], alpha=0.18, linewidth=0)
        look: dict[str, Any] = {"linestyle": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)]}
        look["markersize"] = 3.8 + 0.8 * min(len(series) - 1 - i, 3)  # one behind another shows around it
        axes.plot([x for x, _ in known], ys, color=colors[name], label=name, **look)
    _lines(axes, lines, xs, colors, log, data.get("line_label"))
    axes.set(xlabel=data.get("x_label", ""), ylabel=wrap(data.get("y_label", "")))
    if (log or data.get("log_x")) and min(xs) > 0 and max(xs) >= (data.get("log_x") or 30) * min(xs):
        scale(axes, "x", list(xs), {"log": True}, zero=False)
    else:
        axes.margins(x=0.02)
    if max(xs) in (180, 360):  # degrees
        axes.set_xticks(range(0, max(map(int, xs)) + 1, 45 if max(xs) == 180 else 90))


def _lines(
    axes: Axes,
    lines: dict[str, Any],
    xs: Sequence[float],
    colors: dict[str, str],
    log: bool,
    label: str | None = None,
) -> None:
    """What is predicted, dashed, in the colour of the series whose name its own begins with; limits are left alone.

    Args:
        axes: matplotlib's.
        lines: name -> a slope through the origin, or the values at `xs`.
        xs: where.
        colors: of the series, by name.
        log: the axis is logarithmic.
        label: of all lines together, in the place of their names.
    """
    look: dict[str, Any] = {"linestyle": (0, (2, 1.6)), "linewidth": 1.1}
    low, high = limits = axes.get_ylim()
    for name, line in lines.items():
        color = next((color for series, color in colors.items() if name.startswith(series)), INK)
        if isinstance(line, (list, tuple)):
            points = [(x, y) for x, y in zip(xs, line, strict=True) if present([y])]
        else:
            ends = min(xs), max(xs)
            grid = [ends[0] + (ends[1] - ends[0]) * i / 200 for i in range(201)]
            points = [(x, line * x) for x in grid]
        points = [(x, y) for x, y in points if not log or y > 0]
        if any(low <= y <= high for _, y in points):
            axes.plot(*zip(*points, strict=True), color=color, label="_" if label else name, **look)
    if label and lines:
        axes.plot([], [], color=INK if len(lines) > 1 else next(iter(colors.values()), INK), label=label, **look)
    axes.set_ylim(limits)


def _distribution(axes: Axes, data: dict[str, Any]) -> None:
    series = {name: present(values) for name, values in data["series"].items()}
    values = [v for some in series.values() for v in some]
    wide = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    log = scale(axes, "x", values, {**data, "log": data.get("log", wide)}, zero=False)
    for i, (name, some) in enumerate(series.items()):
        if not some:
            continue
        color, marks = PALETTE[i % len(PALETTE)], [quantile(some, share) for share in (0.5, 0.95)]
        xs = sorted(v for v in some if v > 0 or not log)
        if not xs:  # nothing but 0, which a logarithmic axis has not
            continue
        ys = [(len(some) - len(xs) + k) / len(some) for k in range(len(xs) + 1)]
        median, most = (tick(float(f"{mark:.2g}"), 0) for mark in marks)
        label = f"median {median}, 95 % {most}"
        label = label if len(series) == 1 else f"{short(name, 18)}: {label}"
        axes.step([xs[0], *xs], ys, where="post", color=color, linestyle=DASHES[i % len(DASHES)], label=label)
        axes.plot(marks, [0.5, 0.95], MARKERS[i % len(MARKERS)], color=color, markersize=5.5)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 0.95], ["0", "25 %", "median", "75 %", "95 %"])
    axes.set_ylim(0.0, 1.02)
    axes.grid(axis="y")
    axes.set(xlabel=data.get("x_label", ""), ylabel=data.get("y_label", "inputs below"))


def _scatter(axes: Axes, data: dict[str, Any]) -> None:
    series = data["series"]
    xs, ys = ([v for s in series.values() for v in present(s[part])] for part in ("x", "y"))
    ys += [slope * x for slope in data.get("lines", {}).values() for x in (min(xs, default=0.0), max(xs, default=0.0))]
    both = min([*xs, *ys], default=0.0) > 0 and any(max(some) >= 10 * min(some) for some in (xs, ys))
    span = 1.0 if both else math.inf  # a line through the origin stays straight where both axes are logarithmic
    scale(axes, "x", xs, {**data, "floor": None}, zero=False, span=span)
    log = scale(axes, "y", ys, data, zero=False, span=span)
    colors = {}
    for i, (name, s) in enumerate(series.items()):
        colors[name] = PALETTE[i % len(PALETTE)]
        axes.plot(
            *([math.nan if v is None else v for v in s[part]] for part in ("x", "y")),
            MARKERS[i % len(MARKERS)],
            color=colors[name],
            alpha=0.65,
            markersize=4 if len(xs) > 200 else 6,
            markeredgewidth=0,
            label=name,
        )
    limits = axes.get_xlim()
    _lines(axes, data.get("lines", {}), limits, colors, log)
    axes.set_xlim(limits)
    axes.set(xlabel=data.get("x_label", ""), ylabel=wrap(data.get("y_label", "")))


_DRAW = {"bars": _bars, "curve": _curve, "distribution": _distribution, "scatter": _scatter}
