"""Markdown as GitHub reads it."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from lightning_equiv.report.document import Document, Section, Table
from lightning_equiv.report.markdown import to_markdown
from tests.report.example import numbers_of


def tables(text):
    """Runs of lines that are rows, as cells; a bar behind a backslash is text."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]


def test_every_number_is_there(document):
    text = to_markdown(document)
    assert not [number for number in numbers_of(document) if number not in html.unescape(text)]


def test_rows_of_a_table_have_the_same_cells(document):
    found = list(tables(to_markdown(document)))
    assert len(found) == 1 + sum(len(s.tables) + len(s.pictures) for s in document.sections)
    for rows in found:
        assert {len(row) for row in rows} == {len(rows[0])}
        assert set("".join(rows[1])) <= set("-: ")


def test_bars_and_tags_in_cells_are_text():
    table = Table("T", ("a|b", "`c|d`"), (("<script>", "x\ny"),))
    text = to_markdown(Document("# T", "- s", "approximate", (), (Section("a", "A", ("1. p", "*b*"), (table,)),)))
    (rows,) = tables(text)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert r"a\|b" in rows[0][0]
    assert rows[2] == [" &lt;script> ", " x y "]
    assert r"# \# T" in text
    assert "\n\\- s\n" in text
    assert "\n\\1. p\n" in text
    assert r"\*b\*" in text


def test_pictures_are_linked_where_they_lie(document):
    assert "![" not in to_markdown(document)
    text = to_markdown(document, lambda picture: f"pictures of/{picture.name}.png")
    assert re.findall(r"!\[.*?\]\(<pictures of/(\w+)\.png>\)", text) == [p.name for p in document.pictures]
    for number, picture in enumerate(document.pictures, start=1):
        assert f"**Figure {number}.** {picture.caption}" in text


def test_headings(document):
    text = to_markdown(replace(document, headline=()))
    assert re.findall(r"^## \d+ (.*)$", text, re.MULTILINE) == [s.title for s in document.sections]
    assert re.findall(r"^# (.*)$", text, re.MULTILINE) == [document.title]


def test_a_document_without_a_verdict_shows_none():
    document = Document("T", "S", "", (), ())
    assert to_markdown(document) == "# T\n\nS\n"
    assert to_markdown(replace(document, verdict="approximate")) == "# T\n\nS\n\n**Verdict: approximate**\n"
