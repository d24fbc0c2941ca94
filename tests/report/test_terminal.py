"""What a terminal shows, with rich and without it."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from lightning_equiv.report.document import Document, Picture, Section, Table, shown
from lightning_equiv.report.terminal import bars, to_terminal, to_text
from tests.report.example import numbers_of


def with_rich(document, width=80, **options):
    file = io.StringIO()
    to_terminal(document, Console(file=file, width=width, **options))
    return file.getvalue()


@pytest.mark.parametrize("write", [to_text, with_rich])
def test_every_number_is_there_in_80_columns(document, write):
    text = write(document)
    assert max(map(len, text.splitlines())) <= 80
    assert not [number for number in numbers_of(document, drawn=False) if number not in text]
    for picture in document.pictures:
        if picture.kind in ("bars", "curve"):
            values = [v for s in picture.data["series"].values() for v in s["value"]]
            assert not [v for v in values if shown(v) not in text]


@pytest.mark.parametrize("write", [to_text, with_rich])
@pytest.mark.parametrize("width", [40, 60, 120])
def test_other_widths(document, write, width):
    assert max(map(len, write(document, width).splitlines())) <= width


@pytest.mark.parametrize("write", [to_text, with_rich])
def test_a_wide_table_is_several(write):
    header = ("layer", *(f"column{i}" for i in range(30)))
    rows = (("first", *(str(1000 + i) for i in range(30))),)
    document = Document("T", "", "approximate", (), (Section("a", "A", tables=(Table("wide", header, rows),)),))
    text = write(document)
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in header)
    assert all(str(1000 + i) in text for i in range(30))
    assert text.count("first") > 1


def test_the_verdict_is_in_colour(document):
    text = with_rich(document, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;33mVerdict: approximate", text)
    text = with_rich(replace(document, verdict="not equivariant"), force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;31mVerdict: not equivariant", text)


def test_markup_is_text():
    document = Document(
        "[red]T[/red]", "[bold]", "approximate", (("[a]", "[/b]", ""),), (Section("a", "[x]", ("[y]",)),)
    )
    text = with_rich(document)
    assert all(word in text for word in ("[red]T[/red]", "[bold]", "[a]", "[/b]", "[x]", "[y]"))


def test_without_rich_it_is_plain_text(document, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    to_terminal(document)
    assert capsys.readouterr().out == to_text(document) + "\n"


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_without_unicode_gets_other_bars(document, monkeypatch, rich):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    if rich:
        to_terminal(document, Console(file=out, width=80))
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
        monkeypatch.setattr(sys, "stdout", out)
        to_terminal(document)
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert "====== " in text
    assert "0.424 ? 0.011" in text
    assert max(map(len, text.splitlines())) <= 80


def filled(cell):
    return cell.count("━") + cell.count("╸") / 2 + cell.count("╺") / 2


def test_bars_are_as_long_as_their_numbers():
    data = {"labels": ["a", "b", "c"], "series": {"s": {"value": [1.0, 0.5, None]}}}
    (a, b, c) = (row[1] for row in bars(Picture("p", "bars", data, "")).rows)
    assert (filled(a), filled(b), filled(c)) == (24, 12, 0)
    assert c.endswith("–")


def test_negative_bars_lie_left_of_zero():
    data = {"labels": ["a", "b"], "series": {"s": {"value": [0.75, -0.25]}}}
    up, down = (row[1] for row in bars(Picture("p", "bars", data, "")).rows)
    assert (filled(up), filled(down)) == (18, 6)
    assert up.index("━") == down.rindex("━") + 1 == 6


def test_logarithmic_bars_say_so():
    data = {"labels": ["a", "b", "c"], "series": {"s": {"value": [1.0, 0.01, 0.0]}}, "log": True}
    table = bars(Picture("p", "bars", data, ""))
    a, b, c = (filled(row[1]) for row in table.rows)
    assert a == 24
    assert 1 < b < 6
    assert c == 0
    assert "logarithmic" in table.note


def test_a_document_without_a_verdict_shows_none(document):
    small = replace(document, verdict="", sections=())
    for write in (to_text, with_rich):
        assert "erdict" not in write(small)
        assert "Verdict" in write(replace(small, verdict="approximate"))


def test_where_no_bar_fits_there_are_numbers_alone():
    series = {f"way {i}": {"value": [1.0, 0.25]} for i in range(12)}
    picture = Picture("p", "curve", {"x": [1, 2], "series": series}, "C")
    table = bars(picture)
    assert table.rows == picture.numbers().rows
    assert table.title == "C"
    assert any("━" in cell for cell in bars(picture, 400).rows[0])
