"""What is on the axes."""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import pairwise

import matplotlib as mpl
import matplotlib.image
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lightning_equiv.report.document import Picture
from lightning_equiv.report.html import svg, to_html
from lightning_equiv.report.pictures import DASHES, MARKERS, PALETTE, draw, figure, height, panel, save_png


def axes_of(kind, data):
    axes = Figure().subplots()
    draw(Picture("p", kind, data, ""), axes)
    return axes


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", PALETTE)
@pytest.mark.parametrize("paper", ["#ffffff", "#131415"])
def test_colours_read_on_white_and_on_black(color, paper):
    low, high = sorted((luminance(color), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_series_beyond_the_palette_look_like_no_other():
    names = [f"way {i}" for i in range(len(PALETTE) * len(MARKERS))]
    scatter = axes_of("scatter", {"series": {name: {"x": [1.0], "y": [1.0]} for name in names}})
    curve = axes_of("curve", {"x": [1.0, 2.0], "series": {name: {"value": [1.0, 2.0]} for name in names}})
    for axes in (scatter, curve):
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == len(names)
    first = curve.lines[: len(PALETTE)]
    assert len({line.get_color() for line in first}) == len(PALETTE)


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        ([1.0, 0.01], True, "log"),
        ([1.0, 0.01], False, "linear"),
        ([1.0, 0.2], True, "linear"),  # less than a decade
        ([1.0, -0.01], True, "linear"),
        ([1.0, 0.01, 0.0, None], True, "log"),
        ([None], True, "linear"),
    ],
)
@pytest.mark.parametrize("kind", ["bars", "curve"])
def test_scale(kind, values, log, scale):
    along = {"labels": list("abcd")[: len(values)], "x": list(range(len(values)))}
    axes = axes_of(kind, {**along, "series": {"s": {"value": values}}, "log": log})
    assert axes.get_yscale() == scale


def test_an_interval_below_zero_leaves_the_axis_logarithmic():
    series = {"s": {"value": [1.0, 0.01], "low": [0.9, -0.01], "high": [1.1, 0.03]}}
    axes = axes_of("bars", {"labels": ["a", "b"], "series": series, "log": True})
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] > 0


def test_bars_reach_their_values_and_zero():
    series = {"s": {"value": [0.5, -0.25, None], "low": [0.4, -0.3, None], "high": [0.6, -0.2, None]}}
    axes = axes_of("bars", {"labels": ["a", "b", "c"], "series": series, "horizontal": True})
    assert [patch.get_width() for patch in axes.patches] == [0.5, -0.25]
    assert axes.get_xlim()[0] < -0.3 < 0.6 < axes.get_xlim()[1]
    (intervals,) = axes.collections
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[0.4, 0.6], [-0.3, -0.2]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.yaxis_inverted()


def test_logarithmic_bars_are_points():
    axes = axes_of("bars", {"labels": ["a", "b"], "series": {"s": {"value": [1.0, 0.001]}}, "log": True})
    assert not axes.patches
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.001]


def test_a_curve_has_its_band_and_the_line_that_its_slope_predicts():
    series = {"after": {"value": [0.0, 1.0, 1.5], "low": [0.0, 0.9, 1.2], "high": [0.0, 1.1, 1.8]}}
    axes = axes_of("curve", {"x": [0, 90, 180], "series": series, "lines": {"after: slope": 0.02}, "floor": 1e-6})
    curve, line = (next(x for x in axes.lines if x.get_label() == name) for name in ("after", "after: slope"))
    assert curve.get_ydata().tolist() == [0.0, 1.0, 1.5]
    assert line.get_ydata() == pytest.approx([0.02 * x for x in line.get_xdata()])
    assert line.get_color() == curve.get_color()
    assert line.is_dashed()
    assert axes.get_ylim()[1] < 2  # the line leaves the axes at the top
    assert len(axes.collections) == 1
    assert axes.get_xticks().tolist() == [0, 45, 90, 135, 180]
    assert labels(axes) == ["after", "after: slope", "floor 10⁻⁶, below"]


def test_curves_that_coincide_differ_in_style():
    axes = axes_of("curve", {"x": [1, 2], "series": {name: {"value": [1.0, 2.0]} for name in "abcd"}})
    looks = {(line.get_linestyle(), line.get_marker(), str(line.get_color())) for line in axes.lines}
    assert len({look[1] for look in looks}) == len({look[2] for look in looks}) == 4
    assert len({str(line._unscaled_dash_pattern) for line in axes.lines}) == 4
    assert len(PALETTE) % len(DASHES)  # a colour that comes again has another dash


@pytest.mark.parametrize(
    ("ys", "ticks"),
    [
        ([36.0, 97.0], [40.0, 60.0, 80.0, 100.0]),  # less than a decade
        ([0.0011, 0.0069], [0.002, 0.004, 0.006]),
        ([12.0, 420.0], [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]),
    ],
)
def test_a_logarithmic_axis_of_less_than_a_decade_has_the_ticks_of_a_linear_one(ys, ticks):
    axes = axes_of("scatter", {"series": {"s": {"x": [1.0, 100.0], "y": ys}}, "log": True})
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert [t for t in axes.get_yticks() if low <= t <= high] == pytest.approx(ticks)
    assert bool(len(axes.yaxis.get_minorticklocs())) == (ys[1] > 10 * ys[0])


def test_long_names_of_layers_stay_apart():
    names = [f"backbone.encoder.stages.{i}.blocks.{j}.attention.linear" for i in range(3) for j in range(3)]
    axes = axes_of("bars", {"labels": names, "series": {"s": {"value": [1.0] * 9}}, "horizontal": True})
    shorts = [text.get_text() for text in axes.get_yticklabels()]
    assert len(set(shorts)) == 9
    assert max(map(len, shorts)) <= 28
    assert all(short.endswith("attention.linear") for short in shorts)


@pytest.mark.parametrize(
    ("names", "turned"),
    [
        (["plain", "cloned, retain", "cloned, break", "strict"], True),  # two long ones side by side
        (["cloned, retain", "a", "cloned, break", "b"], False),
        (["0", "1", "2", "3", "4", "rest"], False),
    ],
)
def test_names_below_bars_do_not_touch(names, turned):
    whole = panel(Picture("p", "bars", {"labels": names, "series": {"s": {"value": [1.0] * len(names)}}}, ""))
    whole.draw_without_rendering()
    texts = whole.axes[0].get_xticklabels()
    assert [text.get_rotation() > 0 for text in texts] == [turned] * len(names)
    if not turned:
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 + 3 < b.x0 for a, b in pairwise(boxes))


def test_a_long_legend_makes_the_panel_higher():
    few, many = (
        Picture("p", "distribution", {"series": {f"way {i}": [1.0, 2.0] for i in range(n)}}, "") for n in (2, 6)
    )
    assert height(many) > height(few) + 0.5


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["before", "after"], 2),
        (["a", "b", "c", "d"], 3),
        (["before", "after", "before: slope at 0", "after: slope at 0", "floor 10⁻⁷"], 2),
        (["a name of twenty-one", "another name as long as", "and a third one of that"], 1),
    ],
)
def test_a_legend_has_the_columns_that_fit(names, columns):
    axes = axes_of("curve", {"x": [1, 2], "series": {name: {"value": [1, 2]} for name in names}})
    assert axes.get_legend()._ncols == columns


def test_what_has_no_values_is_drawn_empty():
    nothing = {"value": [None, None]}
    assert not axes_of("bars", {"labels": ["a", "b"], "series": {"s": nothing}, "log": True}).patches
    assert axes_of("curve", {"x": [0, 1], "series": {"s": nothing}, "floor": 1e-7}).lines
    assert not axes_of("distribution", {"series": {"s": [None]}}).lines
    assert axes_of("scatter", {"series": {"s": {"x": [], "y": []}}, "lines": {"equal": 1.0}}).lines


def test_a_near_floor_is_drawn():
    axes = axes_of("curve", {"x": [1, 2], "series": {"s": {"value": [1e-5, 1e-3]}}, "floor": 1e-6, "log": True})
    assert any(list(line.get_ydata()) == [1e-6, 1e-6] for line in axes.lines)
    assert axes.get_ylim()[0] < 1e-6


def test_a_distribution_marks_median_and_95th_percentile():
    values = [float(v) for v in range(1, 102)]
    axes = axes_of("distribution", {"series": {"s": values, "t": [2.0]}})
    assert axes.get_xscale() == "log"
    marks = axes.lines[1]
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([51.0, 96.0], [0.5, 0.95])
    steps = axes.lines[0]
    assert steps.get_ydata()[-1] == 1
    assert labels(axes) == ["s: median 51, 95 % 96", "t: median 2, 95 % 2"]


def test_a_narrow_distribution_is_linear():
    assert axes_of("distribution", {"series": {"s": [1.0, 2.0, 3.0]}}).get_xscale() == "linear"


def test_a_scatter_shows_its_points_and_the_diagonal():
    data = {"series": {"s": {"x": [0.2, 0.8], "y": [0.001, 0.1]}}, "lines": {"equal": 1.0}, "log": True}
    axes = axes_of("scatter", data)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylim()[1] > 0.8
    assert axes.lines[0].get_xdata().tolist() == [0.2, 0.8]


def test_a_figure_has_every_picture_at_most_two_in_a_row(document):
    whole = figure(document.pictures)
    assert [axes.get_title(loc="left") for axes in whole.axes] == [picture.title for picture in document.pictures]
    whole.canvas.draw()
    boxes = [axes.get_window_extent() for axes in whole.axes]
    rows = Counter(round(part.bbox.y0) for part in whole.subfigs if part.axes)
    assert [rows[y] for y in sorted(rows, reverse=True)] == [2, 2, 2, 1]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("one_legend", [True, False])
def test_letters_of_a_figure_can_be_read_on_a_page(document, one_legend):
    """At least 9.5 pixels high where the figure is shown 690 pixels wide; legends hide neither titles nor data."""
    pictures = document.pictures
    if one_legend:  # of pictures with the same series
        same = {"x": [1, 2], "series": {f"way {i}": {"value": [1.0, i]} for i in range(20)}}
        pictures = tuple(Picture(f"picture {i}", "curve", same, "") for i in range(3))
    whole = figure(pictures, one_legend)
    pixels = 690 / whole.get_size_inches()[0]
    legends = [axes.get_legend() for axes in whole.axes if axes.get_legend()]
    legends += [legend for part in whole.subfigs for legend in part.legends]
    titles = [axes._left_title for axes in whole.axes]
    texts = [*titles, *(text for legend in legends for text in legend.get_texts())]
    texts += [text for axes in whole.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()]
    assert legends
    assert min(text.get_fontsize() for text in texts) / 72 * pixels > 9.4
    for legend in legends:
        box = legend.get_window_extent()
        others = [axes.get_window_extent() for axes in whole.axes]
        others += [title.get_window_extent() for title in titles]
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in others)


def test_a_png_has_few_colours_and_the_picture_in_them(tmp_path):
    data = {"x": [1, 2], "series": {name: {"value": [i, i + 1]} for i, name in enumerate("abcdefgh")}}
    drawn = panel(Picture("p", "curve", data, ""))
    save_png(drawn, tmp_path / "few.png")
    drawn.savefig(tmp_path / "all.png", dpi=150)
    few, whole = (mpl.image.imread(tmp_path / f"{name}.png")[..., :3] for name in ("few", "all"))
    assert few.shape == whole.shape
    assert abs(few - whole).max() < 0.25  # where two colours meet
    assert abs(few - whole).mean() < 0.002
    assert (tmp_path / "few.png").stat().st_size < (tmp_path / "all.png").stat().st_size / 2


def test_a_figure_of_no_pictures_is_empty():
    assert figure(()).axes == []


def test_the_users_style_is_left_alone_and_not_used():
    picture = Picture("p", "bars", {"labels": ["a"], "series": {"s": {"value": [1.0]}}}, "")
    plain = svg(picture, "k")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        assert svg(picture, "k") == plain
        assert dict(mpl.rcParams) == before


def test_dollars_are_dollars():
    picture = Picture("p", "bars", {"labels": ["a$_b$"], "series": {"s": {"value": [1.0]}}}, "")
    assert "a$_b$" in svg(picture, "k")


@pytest.mark.parametrize(
    "write", [to_html, lambda document: figure(document.pictures), lambda document: panel(document.pictures[0])]
)
def test_without_matplotlib_it_says_what_to_install(document, monkeypatch, write):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'lightning_equiv\[report\]'"):
        write(document)


def test_without_matplotlib_a_page_without_pictures_is_written(document, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "</html>" in to_html(document, pictures=False)


@pytest.mark.parametrize(("log_x", "scale"), [(30, "log"), (100, "log"), (101, "linear"), (False, "linear")])
def test_a_curve_may_be_logarithmic_along_x_alone(log_x, scale):
    axes = axes_of("curve", {"x": [1.0, 100.0], "series": {"s": {"value": [1.0, 2.0]}}, "log": True, "log_x": log_x})
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, "linear")


def test_few_points_of_a_scatter_are_drawn_larger():
    few, many = (axes_of("scatter", {"series": {"s": {"x": [*range(n)], "y": [*range(n)]}}}) for n in (5, 500))
    assert few.lines[0].get_markersize() > many.lines[0].get_markersize()


def test_a_curve_goes_on_over_places_where_it_was_not_measured():
    """Two ways that were looked at after other steps share an axis; what is no number stays a gap."""
    series = {"a": {"value": [1.0, None, 3.0]}, "b": {"value": [1.0, math.nan, 3.0]}}
    drawn = axes_of("curve", {"x": [1, 2, 3], "series": series})
    a, b = (line.get_xydata().tolist() for line in drawn.lines[:2])
    assert a == [[1.0, 1.0], [3.0, 3.0]]
    assert math.isnan(b[1][1])
