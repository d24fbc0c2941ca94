"""A document in a terminal, with rich where there is one, and as plain text."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_equiv.report.document import Document, Picture, Table, present, quantile, shown

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
_COLORS = {"exact to rounding": "green", "approximate": "yellow", "not equivariant": "red"}
_GAP = 2  # spaces between columns


def to_terminal(document: Document, console: Console | None = None) -> None:
    """Print a document: with rich in colour, and as `to_text` where rich is not installed.

    Args:
        document: what to print.
        console: rich's; a new one without it.
    """
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError:
        print(_encodable(to_text(document), sys.stdout.encoding))
        return
    console = console or Console()

    def written(text: str, style: str = "") -> Text:
        return Text(_encodable(text, console.encoding), style=style)

    for kind, content in _blocks(document, min(console.width, 120)):
        if isinstance(content, Table):
            table = RichTable(box=None, show_header=any(content.header), padding=(0, _GAP, 0, 0), pad_edge=False)
            widths = _widths(content, min(console.width, 120))
            for name, numeric, width in zip(content.header, content.numeric, widths, strict=True):
                table.add_column(written(name), header_style="bold", width=width, overflow="fold")
                table.columns[-1].justify = "right" if numeric else "left"
            for row in content.rows:
                table.add_row(*map(written, row))
            console.print(table)
        else:
            style = {"title": "bold", "heading": "bold cyan", "caption": "italic", "note": "dim"}.get(kind, "")
            style = f"bold {_COLORS[document.verdict]}" if kind == "verdict" else style
            console.print(written(content, style), highlight=False, width=min(console.width, 120))


def _encodable(text: str, encoding: str) -> str:
    """A text of the same length that a terminal or a file of another encoding than Unicode takes."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(str.maketrans("━╸╺–−×", "===--x"))
        return plain.encode(encoding, "replace").decode(encoding)
    return text


def to_text(document: Document, width: int = WIDTH) -> str:
    """A document as plain text.

    Args:
        document: what to write.
        width: characters of a line.
    """
    lines: list[str] = []
    for kind, content in _blocks(document, width):
        if isinstance(content, Table):
            lines += _lines(content, width)
        else:
            lines += textwrap.wrap(content, width, break_on_hyphens=False) or [""]
            if kind in ("title", "heading"):
                lines.append(("=" if kind == "title" else "-") * min(len(content), width))
    return "\n".join(line.rstrip() for line in lines)


def _blocks(document: Document, width: int) -> Iterator[tuple[str, str | Table]]:
    """What is printed, from top to bottom, each with what it is; no table is wider than `width`."""
    yield "title", document.title
    yield "text", document.subtitle
    yield "text", ""
    if document.verdict:
        yield "verdict", f"{document.label}: {document.verdict}"
        yield "text", ""
    if document.headline:
        yield from (("table", part) for part in _parts(Table("", ("", "", ""), document.headline), width))
    for number, section in enumerate(document.sections, start=1):
        yield "text", ""
        yield "heading", f"{number} {section.title}"
        for i, paragraph in enumerate(section.text):
            if i:
                yield "text", ""
            yield "text", paragraph
        tables = [*section.tables, *(bars(picture, width) for picture in section.pictures)]
        for table in tables:
            yield "text", ""
            yield "caption", table.title
            for i, part in enumerate(_parts(table, width)):
                if i:
                    yield "text", ""
                yield "table", part
            if table.note:
                yield "note", table.note


def bars(picture: Picture, width: int = WIDTH) -> Table:
    """A picture as a table: bars and curves with a bar of characters in each cell, others as their numbers.

    Args:
        picture: of any kind.
        width: characters of a line.

    Examples:
        >>> data = {"labels": ["0", "1"], "series": {"all": {"value": [1.0, 0.25]}}}
        >>> bars(Picture("by_degree", "bars", data, "The error by degree."), 30).rows
        (('0', '━━━━━━━━━━━━━━━━━━━━━━ 1'), ('1', '━━━━━╸                 0.25'))
    """
    if picture.kind == "scatter":
        return _medians(picture)
    numbers = picture.numbers()
    if picture.kind == "distribution":
        return Table(picture.caption, numbers.header, numbers.rows, numbers.note)
    data, series = picture.data, picture.data["series"]
    labels = [row[0] for row in numbers.rows]
    values = [v for s in series.values() for v in present(s["value"])]
    least, most = min(values, default=0.0), max(values, default=0.0)
    positive = [v for v in values if v > 0]
    log = bool(data.get("log")) and least >= 0 and bool(positive) and most >= 10 * min(positive)
    written = [max((len(shown(v)) for v in s["value"]), default=1) for s in series.values()]
    first = min(max(map(len, [*labels, numbers.header[0]]), default=0), width // 3)
    free = width - first - sum(written) - len(series) * (_GAP + 1)
    length = min(24, free // len(series))
    if length < 4:  # numbers alone
        return Table(picture.caption, numbers.header, numbers.rows, numbers.note)

    def cell(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return f"{'':{length}} {shown(None)}"
        if log:
            low = math.log10(min(positive)) - 0.3
            share = (math.log10(value) - low) / (math.log10(most) - low) if value > 0 else 0.0
            return f"{_bar(share, length):{length}} {shown(value)}"
        if least >= 0:
            return f"{_bar(value / most if most else 0.0, length):{length}} {shown(value)}"
        span = max(most, 0.0) - least
        left = max(1, round(-least / span * length))
        if value < 0:
            mirrored = _bar(-value / span * length / left, left).replace("╸", "╺")[::-1]
            return f"{mirrored:>{left}}{'':{length - left}} {shown(value)}"
        right = length - left
        return f"{'':{left}}{_bar(value / span * length / max(right, 1), right):{right}} {shown(value)}"

    rows = tuple((label, *(cell(s["value"][i]) for s in series.values())) for i, label in enumerate(labels))
    # A line's slope is one number, and follows from the section's text; its values are in the other renderers.
    note = "; ".join(part for part in (numbers.note.rstrip("."), "bars on a logarithmic scale" if log else "") if part)
    return Table(picture.caption, (numbers.header[0], *series), rows, note + "." if note else "")


def _medians(picture: Picture) -> Table:
    data = picture.data
    header = ("", "points", *(f"median {data.get(f'{part}_label', part)}" for part in "xy"))
    rows = []
    for name, s in data["series"].items():
        some = {part: present(s[part]) for part in "xy"}
        rows.append((name, str(len(s["x"])), *(shown(quantile(v, 0.5) if v else None) for v in some.values())))
    return Table(picture.caption, header, tuple(rows))


def _bar(share: float, length: int) -> str:
    halves = round(min(max(share, 0.0), 1.0) * length * 2)
    return "━" * (halves // 2) + "╸" * (halves % 2)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table; where its columns do not fit beside each other, several, each with the first column."""
    least = _least(table)
    first = min(least[0], width // 2)
    start = 1
    while start < len(table.header):
        stop, used = start, first
        while stop < len(table.header) and (stop == start or used + _GAP + least[stop] <= width):
            used += _GAP + least[stop]
            stop += 1
        chosen = [0, *range(start, stop)]
        rows = tuple(tuple(row[i] for i in chosen) for row in table.rows)
        yield Table(table.title, tuple(table.header[i] for i in chosen), rows)
        start = stop
    if len(table.header) == 1:
        yield table


def _least(table: Table) -> list[int]:
    """Widths below which a number or a word would be broken."""
    widths = []
    for name, numeric, *cells in zip(table.header, table.numeric, *table.rows, strict=True):
        whole = cells if numeric else " ".join(cells).split()
        widths.append(max(map(len, [*name.split(), *whole]), default=1))
    return widths


def _columns(table: Table) -> list[tuple[str, ...]]:
    return list(zip(table.header, *table.rows, strict=True))


def _widths(table: Table, width: int) -> list[int]:
    """Of the columns: what they need, the widest ones narrowed until all fit; no word is broken that need not be."""
    columns = _columns(table)
    widths = [max(1, *map(len, column)) for column in columns]
    least = _least(table)
    free = width - _GAP * (len(widths) - 1)
    while sum(widths) > free and max(widths) > 1:
        loose = [i for i in range(len(widths)) if widths[i] > least[i]] or range(len(widths))
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _lines(table: Table, width: int) -> Iterator[str]:
    widths, numeric = _widths(table, width), table.numeric
    header = [table.header, tuple("-" * w for w in widths)] if any(table.header) else []
    for row in (*header, *table.rows):
        cells = [
            textwrap.wrap(cell, w, break_on_hyphens=False) if len(cell) > w else [cell]
            for cell, w in zip(row, widths, strict=True)
        ]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            yield (" " * _GAP).join(
                f"{part:>{w}}" if right else f"{part:<{w}}"
                for part, w, right in zip(parts, widths, numeric, strict=True)
            )
