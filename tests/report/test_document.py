"""What a document accepts, and its pictures as numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lightning_equiv.report.document import Picture, Section, Table, quantile, shown


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"table 'Error' to have 2 cells.*got \('a',\)"):
        Table("Error", ("output", "error"), (("a",),))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("pie", {}, "kind .*'bars', 'curve', 'distribution', 'scatter'.*, got 'pie'"),
        ("bars", {"labels": []}, r"lack \['series'\]"),
        ("curve", {"x": [1, 2], "series": {"a": {"value": [1]}}}, "expected 2 numbers in 'a: value'"),
        ("bars", {"labels": ["u"], "series": {"a": {"value": [1], "low": [1, 2]}}}, "expected 1 numbers in 'a: low'"),
        ("curve", {"x": [1], "series": {"a": {"value": [1]}}, "lines": {"b": [1, 2]}}, "expected 1 numbers in 'b'"),
        ("curve", {"x": [], "series": {"a": {"value": []}}}, r"nothing to draw: \['x'\]"),
        ("scatter", {"series": {}}, r"nothing to draw: \['series'\]"),
    ],
)
def test_data_that_cannot_be_drawn_are_refused(kind, data, message):
    with pytest.raises(ValueError, match=message):
        Picture("p", kind, data, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "fine"}, "expected the verdict to be one of"),
        ({"headline": (("a", "b", "c"),) * 6}, "at most five"),
        ({"sections": (Section("a", "A"), Section("a", "B"))}, r"distinct, got \['a'\]"),
    ],
)
def test_a_document_that_makes_no_page_is_refused(document, change, message):
    with pytest.raises(ValueError, match=message):
        replace(document, **change)


def test_a_key_that_makes_no_link_is_refused():
    with pytest.raises(ValueError, match="letters, digits"):
        Section("a b", "A")


def test_data_are_json(document):
    for picture in document.pictures:
        assert json.loads(json.dumps(picture.data, allow_nan=False)) == picture.data


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_quantiles_are_those_of_numpy(share):
    values = [3.0, -1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-14)


def test_numbers_of_a_curve_hold_intervals_gaps_and_lines():
    data = {
        "x": [0.0, 90.0],
        "x_label": "angle",
        "series": {"a": {"value": [0.0, 0.5], "low": [0.0, 0.4], "high": [None, 0.6]}, "b": {"value": [None, 2.0]}},
        "lines": {"slope": 0.01, "bound": [0.25, 0.75]},
        "floor": 1e-7,
    }
    table = Picture("profile", "curve", data, "").numbers()
    assert table.header == ("angle", "a", "b", "slope", "bound")
    assert table.rows == (("0", "0", "–", "0", "0.25"), ("90", "0.5 (0.4 to 0.6)", "2", "0.9", "0.75"))
    assert "1e-07" in table.note


def test_numbers_of_a_distribution_are_its_quantiles():
    table = Picture("d", "distribution", {"series": {"a": list(map(float, range(101))), "b": []}}, "").numbers()
    assert table.rows == (("a", "101", "0", "50", "95", "100"), ("b", "0", "–", "–", "–", "–"))


def test_numbers_of_a_long_scatter_end():
    points = {"x": list(range(70)), "y": list(range(70))}
    table = Picture("s", "scatter", {"series": {"a": points}}, "").numbers()
    assert len(table.rows) == 50
    assert "50 of 70" in table.note


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (("0.2 ± 0.1", "–", "1e-7"), True),
        (("-0.5", "+0.2", ".5", "< 1e-6"), True),
        (("0.213 (0.201 to 0.226)",), True),
        (("12.4 meV", "3 %"), True),
        (("64 draws of the group",), False),
        (("float32", "1"), False),
        (("–",), False),
        ((), False),
    ],
)
def test_columns_of_numbers_are_known(cells, numeric):
    assert Table("", ("a",), tuple((cell,) for cell in cells)).numeric == (numeric,)


def test_a_number_that_is_none_is_a_dash():
    assert shown(None) == shown(float("nan")) == "–"
