"""What the report of a comparison shows, and how it is written."""

from __future__ import annotations

import csv
import io
import re

import matplotlib.image
import numpy as np
import pytest

from lightning_equiv.compare.comparison import Comparison
from lightning_equiv.compare.tables import to_csv
from lightning_equiv.report.document import present
from tests.compare.synthetic import WAYS, realistic, record, records
from tests.report.test_html import Page
from tests.report.test_markdown import tables

TABLE = {"plain": [0.010, 0.015, 0.009], "remul": [0.005, 0.0075, 0.0045]}


@pytest.fixture(scope="module")
def comparison():
    return Comparison(realistic(), title="N-body")


def section(comparison, key):
    return next((s for s in comparison.document.sections if s.key == key), None)


def column(table, start):
    """Cells by way of the one column whose name begins so."""
    (place,) = [i for i, name in enumerate(table.header) if name.replace("`", "").startswith(start)]
    return {row[0]: row[place] for row in table.rows}


def test_mean_and_deviation_against_numpy():
    (table,) = section(Comparison(records(TABLE)), "results").tables
    for way, values in TABLE.items():
        mean, deviation = 1e3 * np.mean(values), 1e3 * np.std(values, ddof=1)
        written = [float(v) for v in column(table, "mse × 10⁻³".replace(" 1", "\N{NO-BREAK SPACE}1"))[way].split(" ± ")]
        assert written == pytest.approx([mean, deviation], rel=5e-3)
    assert column(table, "difference from plain")["plain"] == "–"
    assert column(table, "difference from plain")["remul"].startswith("−50 %")
    assert column(table, "training time")["remul"] == "1.00 ×"
    assert column(table, "seeds") == {"plain": "3", "remul": "3"}


@pytest.mark.parametrize(
    ("values", "unit", "written"),
    [
        ([3e-7, 4e-7], " ×\N{NO-BREAK SPACE}10⁻⁹", "350 ± 71"),
        ([0.21, 0.23], "", "0.220 ± 0.014"),
        ([98.5, 98.7], "", "98.6 ± 0.1"),
        ([2e5, 2e5], " ×\N{NO-BREAK SPACE}10³", "200 ± 0"),
    ],
)
def test_numbers_are_written_in_a_power_of_ten(values, unit, written):
    (table,) = section(Comparison(records({"plain": values})), "results").tables
    assert f"`mse`{unit}" in table.header
    assert column(table, "mse") == {"plain": written}


def test_a_column_that_has_nothing_is_left_out():
    runs = records(TABLE, inference_ms=None, peak_memory=None)
    (table,) = section(Comparison(runs), "results").tables
    names = " ".join(table.header)
    assert not re.search("equivariance|inference|memory|parameters", names)
    runs = records(TABLE, equivariance_error={"test": 0.1})
    assert "equivariance error" in [name for t in section(Comparison(runs), "results").tables for name in t.header]


def test_absolute_differences_share_the_power_of_their_figures():
    runs = records({"plain": [0.001, 0.002], "way": [0.002, 0.003]}, mode="max")
    (table,) = section(Comparison(runs), "results").tables
    assert "difference from `plain` ×\N{NO-BREAK SPACE}10⁻³" in table.header
    assert column(table, "difference")["way"].startswith("+1")


def test_one_seed_and_one_way():
    (table,) = section(Comparison(records({"plain": [0.2], "way": [0.1]})), "results").tables
    assert column(table, "mse") == {"plain": "0.200", "way": "0.100"}
    assert column(table, "difference")["way"] == "−50 % (1 seed)"
    assert "±" not in table.note
    alone = Comparison(records({"plain": [0.2, 0.3]}))
    (table,) = section(alone, "results").tables
    assert "difference" not in " ".join(table.header)
    assert "one way" in alone.document.subtitle
    assert "Differences" not in table.note


def test_many_figures_are_two_tables_and_many_cases_stand_beside_each_other(comparison):
    titles = [table.title for table in section(comparison, "results").tables]
    assert titles == [
        f"{title}, {case}" for case in comparison.cases for title in ("Ways of training", "Symmetry and cost")
    ]
    many = Comparison(realistic(cases=[f"samples {n}" for n in (300, 100, 1000, 3000)], seeds=2))
    for table in section(many, "results").tables:
        assert table.header == ("", *many.cases)
    first = section(many, "results").tables[0]
    figures = many.figures("samples 1000", "test_mse")
    mean = float(column(first, "samples 1000")["ACE"].split(" ± ")[0])
    assert mean == pytest.approx(1e3 * np.mean(list(figures["ACE"].values())), rel=5e-3)
    picture, _ = many.document.pictures
    assert picture.kind == "curve"
    assert picture.data["x"] == [100.0, 300.0, 1000.0, 3000.0]
    means = [np.mean(list(many.figures(f"samples {n:.0f}", "test_mse")["ACE"].values())) for n in picture.data["x"]]
    assert picture.data["series"]["ACE"]["value"] == pytest.approx(means)


def test_cases_without_numbers_are_bars():
    cases = ("QM9", "MD17", "N-body", "shapes")
    (picture,) = Comparison([r for case in cases for r in records(TABLE, case)]).document.pictures
    assert (picture.kind, picture.data["labels"]) == ("bars", list(cases))


def test_pictures_hold_the_numbers_of_the_runs(comparison):
    pictures, cases = comparison.document.pictures, comparison.cases
    cost, _, curves, angles = pictures[:: len(cases)]
    of = [
        (picture.title.removesuffix(f", {case}"), case)
        for picture in pictures
        for case in cases
        if case in picture.title
    ]
    assert [case for _, case in of] == [*cases] * 4  # of one kind side by side
    assert [a for a, _ in of[::2]] == [b for b, _ in of[1::2]]
    runs = [r for r in realistic() if (r["kind"], r["case"], r["way"]) == ("run", comparison.cases[0], "ACE")]
    assert list(cost.data["series"]) == list(WAYS)
    assert cost.data["series"]["ACE"] == {
        "x": [r["cpu_seconds"] for r in runs],
        "y": [r["metrics"]["test_mse"] for r in runs],
    }
    for step, value in zip(curves.data["x"], curves.data["series"]["ACE"]["value"], strict=True):
        assert value == pytest.approx(np.mean([dict((p[0], p[2]) for p in r["curve"]["val_mse"])[step] for r in runs]))
    assert (curves.data["x"][0], curves.data["x"][-1]) == (100, 8000)
    assert len(curves.data["x"]) <= 24
    expected = np.mean([r["profile"]["error"] for r in runs], axis=0)
    assert angles.data["series"]["ACE"]["value"] == pytest.approx(expected.tolist())


def test_at_most_nine_ways_are_drawn_and_the_reference_is_one():
    means = {"plain": 99.0, **{f"way {i}": float(11 - i) for i in range(10)}}
    comparison = Comparison([r for way, m in means.items() for r in records({way: [m, m + 0.1]})])
    (picture,) = comparison.document.pictures
    assert list(picture.data["series"]) == ["plain", *(f"way {i}" for i in range(2, 10))]
    assert "in the table alone: `way 0` and `way 1`." in picture.caption


def test_a_step_that_one_seed_lacks_is_in_no_mean():
    long, short = [[s, 0.0, 1.0] for s in (1, 2, 3)], [[s, 0.0, 3.0] for s in (1, 2)]
    runs = [record(seed=0, curve={"val_mse": long}), record(seed=1, curve={"val_mse": short})]
    curves = Comparison(runs).document.pictures[1]
    assert curves.data["x"] == [1, 2]
    assert present(curves.data["series"]["plain"]["value"]) == [2.0, 2.0]


def test_what_failed_is_listed(comparison):
    (table,) = section(comparison, "failures").tables
    assert table.rows == (("RECM", "with a field", "3", "diverged", "val_mse was nan after 300 steps"),)
    assert column(section(comparison, "results").tables[2], "seeds")["RECM"] == "4/5"
    assert "`RECM`" in section(comparison, "results").tables[-1].note
    assert section(Comparison(records(TABLE)), "failures") is None


def test_what_a_sweep_chose(comparison):
    (table,) = section(comparison, "sweep").tables
    assert table.rows[0] == ("REMUL", "8", "`weight=0.3, schedule=cosine`", "without a field")


def test_other_batches_come_first():
    comparison = Comparison([*records(TABLE), record("ace", 1, batches={"1": "other"})])
    assert section(comparison, "advice").text[0] == comparison.warnings[0]
    assert comparison.warnings[0] in section(comparison, "how").text
    assert "same batches" not in str(comparison)
    assert "same batches" in str(Comparison(records(TABLE)))
    assert comparison.excerpt().startswith("Take care: `ace`")


def test_a_setting_that_differs_is_listed_by_way():
    runs = [*records(TABLE), record("ace", versions={"torch": "2.8.0"})]
    rows = dict(section(Comparison(runs), "how").tables[0].rows)
    assert rows["versions"] == "torch 2.9.0, commit 0123abc (plain and remul); torch 2.8.0 (ace)"
    assert rows["device"] == "cpu"
    assert rows["steps"] == "100"


def test_the_page_is_valid(comparison):
    text = comparison.html()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.named("svg")) == len(comparison.document.pictures)
    assert "N-body" in page.text
    assert 'class="verdict' not in text
    assert not Page(comparison._repr_html_()).named("body")


def test_markdown_tables_have_their_columns(comparison):
    text = comparison.markdown()
    for rows in tables(text):
        assert {len(row) for row in rows} == {len(rows[0])}
    excerpt = comparison.excerpt("pictures/n body.png")
    assert len(list(tables(excerpt))) == 4
    assert "![The figures of each way, drawn](<pictures/n body.png>)" in excerpt
    assert not re.search("^#", excerpt, re.MULTILINE)
    first = next(tables(excerpt))
    assert [row[0].strip() for row in first[2:]] == list(WAYS)
    assert all(cell.strip() == "---:" for cell in first[1][1:])


def test_the_numbers_as_csv(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == 2 * 2 * len(WAYS)
    (row,) = [r for r in rows if (r["case"], r["way"], r["figure"]) == (comparison.cases[0], "ACE", "test_mse")]
    values = list(comparison.figures(comparison.cases[0], "test_mse")["ACE"].values())
    assert float(row["mean"]) == pytest.approx(np.mean(values))
    assert float(row["standard_deviation"]) == pytest.approx(np.std(values, ddof=1))
    assert float(row["training_time_ratio"]) == pytest.approx(comparison.costs(comparison.cases[0])["ACE"])
    assert float(row["difference"]) == comparison.differences[comparison.cases[0]]["test_mse"]["ACE"].value
    assert rows[0]["way"] == "plain"
    assert rows[0]["difference"] == ""


def test_it_is_saved(tmp_path):
    comparison = Comparison(records(TABLE))
    image = matplotlib.image.imread(comparison.save(tmp_path / "new" / "a.png"))
    assert image.shape[0] > 300
    assert image.std() > 0.01
    assert comparison.save(tmp_path / "a.md").read_text(encoding="utf-8") == comparison.markdown()
    assert comparison.save(tmp_path / "a.csv").read_text(encoding="utf-8").startswith("case,way,figure,")
    assert comparison.save(tmp_path / "a.txt").read_text(encoding="utf-8") == f"{comparison}\n"
    with pytest.raises(ValueError, match=r"ends in one of .*got '.*a\.pdf'"):
        comparison.save(tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="nothing to draw"):
        Comparison([record(status="failed", metrics={})]).save(tmp_path / "b.png")


def test_it_is_printed(comparison, capsys):
    comparison.print()
    shown = capsys.readouterr().out
    assert "N-body" in shown
    assert "4/5" in shown
    assert max(map(len, str(comparison).splitlines())) <= 80
    assert repr(comparison) == f"<Comparison: 80 runs of {', '.join(WAYS)}>"
