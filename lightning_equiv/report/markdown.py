"""A document as Markdown, as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count

from lightning_equiv.report.document import Document, Picture, Table


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
        f"# {escape(document.title)}",
        escape(document.subtitle),
        f"**{escape(document.label)}: {document.verdict}**" if document.verdict else "",
    ]
    if document.headline:
        blocks.append(table_rows(Table("", ("figure", "value", ""), document.headline)))
    tables, figures = count(1), count(1)
    for number, section in enumerate(document.sections, start=1):
        blocks.append(f"## {number} {escape(section.title)}")
        blocks += [escape(paragraph) for paragraph in section.text]
        for table in section.tables:
            blocks += [f"**Table {next(tables)}.** {escape(table.title)}", table_rows(table)]
            blocks += [escape(table.note)] if table.note else []
        for picture in section.pictures:
            blocks += _picture(picture, next(figures), path)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _picture(picture: Picture, number: int, path: Callable[[Picture], str] | None) -> list[str]:
    numbers = picture.numbers()
    image = [] if path is None else [f"![{escape(picture.title)}](<{path(picture)}>)"]
    return [
        *image,
        f"**Figure {number}.** {escape(picture.caption)}",
        f"<details><summary>Numbers of figure {number}</summary>",
        table_rows(numbers),
        escape(numbers.note),
        "</details>",
    ]


def table_rows(table: Table) -> str:
    """The header and the rows of a table; its title and its note are left to the caller."""
    rules = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [[escape(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:]))


def escape(text: str) -> str:
    r"""Text on one line that Markdown and HTML read as text; what stands between backticks stays code.

    Examples:
        >>> escape("a*b | `c*d` <e>"), escape("__init__ of layer_norm")
        ('a\\*b \\| `c*d` &lt;e>', '\\_\\_init\\_\\_ of layer_norm')
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        part = parts[i].replace("&", "&amp;").replace("<", "&lt;")
        part = re.sub(r"(?<![^\W_])_|_(?![^\W_])|([\\`*\[\]~$])", lambda m: "\\" + m[0], part)
        parts[i] = re.sub(r"^([#>+-]|\d+[.)])(?=\s)", r"\\\1", part) if i == 0 else part
    return "".join(parts).replace("|", r"\|")
