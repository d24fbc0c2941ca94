"""A document as Markdown, as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count

from lightning_equiv.audit.document import Document, Picture, Table


def to_markdown(document: Document, path: Callable[[Picture], str] | None = None) -> str:
    r"""Headings, paragraphs and tables; the numbers of a picture in a table that folds out.

    Args:
        document: what to write.
        path: where a picture lies as an image, which is then linked; without it, captions stand alone.

    Examples:
        >>> print(to_markdown(Document("A | B", "C4", "approximate", (("error", "1e-3", "worst input"),), ())))
        # A \| B
        <BLANKLINE>
        C4
        <BLANKLINE>
        **Verdict: approximate**
        <BLANKLINE>
        | figure | value |  |
        | --- | ---: | --- |
        | error | 1e-3 | worst input |
        <BLANKLINE>
    """
    blocks = [
        f"# {_escape(document.title)}",
        _escape(document.subtitle),
        f"**{_escape(document.label)}: {document.verdict}**",
    ]
    if document.headline:
        blocks.append(_table(Table("", ("figure", "value", ""), document.headline)))
    tables, figures = count(1), count(1)
    for number, section in enumerate(document.sections, start=1):
        blocks.append(f"## {number} {_escape(section.title)}")
        blocks += [_escape(paragraph) for paragraph in section.text]
        for table in section.tables:
            blocks += [f"**Table {next(tables)}.** {_escape(table.title)}", _table(table)]
            blocks += [_escape(table.note)] if table.note else []
        for picture in section.pictures:
            blocks += _picture(picture, next(figures), path)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _picture(picture: Picture, number: int, path: Callable[[Picture], str] | None) -> list[str]:
    numbers = picture.numbers()
    image = [] if path is None else [f"![{_escape(picture.title)}](<{path(picture)}>)"]
    return [
        *image,
        f"**Figure {number}.** {_escape(picture.caption)}",
        f"<details><summary>Numbers of figure {number}</summary>",
        _table(numbers),
        _escape(numbers.note),
        "</details>",
    ]


def _table(table: Table) -> str:
    rules = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [[_escape(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:]))


def _escape(text: str) -> str:
    r"""Text on one line that Markdown and HTML read as text; what stands between backticks stays code.

    Examples:
        >>> _escape("a*b | `c*d` <e>"), _escape("__init__ of layer_norm")
        ('a\\*b \\| `c*d` &lt;e>', '\\_\\_init\\_\\_ of layer_norm')
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        part = parts[i].replace("&", "&amp;").replace("<", "&lt;")
        part = re.sub(r"(?<![^\W_])_|_(?![^\W_])|([\\`*\[\]~$])", lambda m: "\\" + m[0], part)
        parts[i] = re.sub(r"^([#>+-]|\d+[.)])(?=\s)", r"\\\1", part) if i == 0 else part
    return "".join(parts).replace("|", r"\|")
