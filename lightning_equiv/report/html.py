"""A document as one HTML page that needs nothing else, or as a piece of one."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator
from itertools import count

from lightning_equiv.report.axes import INK
from lightning_equiv.report.document import Document, Picture, Section, Table
from lightning_equiv.report.pictures import PALETTE, panel, style

CLASS = "equivariance-card"

# "&" is the card: every rule is scoped under its class. Colours are those of the text around it, diluted.
_CSS = """
& { --soft: color-mix(in srgb, currentColor 68%, transparent);
  --rule: color-mix(in srgb, currentColor 22%, transparent);
  --sans: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", Cambria, Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font: 1rem/1.55 var(--serif); overflow-wrap: break-word; text-align: left; }
& *, & *::before { box-sizing: border-box; }
& h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 600; margin: 0 0 .35rem; }
& h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 600; margin: 0 0 .7rem; }
& h2 .number { color: var(--soft); font-weight: 400; margin-right: .6em; }
& p { margin: 0 0 .8rem; max-width: 44rem; }
& .subtitle { color: var(--soft); margin: 0 0 1.2rem; }
& sup { font-size: .72em; line-height: 0; }
& code { font: .88em/1.4 var(--mono); background: none; color: inherit; padding: 0; }
& .verdict { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .7em; margin: 0 0 1.2rem;
  padding: .45rem 0 .45rem .9rem; border-left: 5px solid var(--mark); }
& .verdict span { font: .85rem/1.5 var(--sans); color: var(--soft); }
& .verdict strong { font-size: 1.35rem; line-height: 1.3; font-weight: 600; }
& .exact { --mark: #008f68; } & .approximate { --mark: #b07a00; } & .not { --mark: #d55e00; }
& .headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1.1rem 1.5rem;
  margin: 0; padding: 1rem 0; border: solid var(--rule); border-width: 1px 0; }
& .headline dt, & .headline dd { font: .8rem/1.35 var(--sans); color: var(--soft); margin: 0; }
& .headline dd.value { font-size: 1.5rem; font-weight: 600; color: inherit; font-variant-numeric: tabular-nums; }
& section { margin: 0; padding: 2rem 0 .6rem; border-bottom: 1px solid var(--rule); }
& section:last-of-type { border-bottom: 0; }
& figure { margin: 0; min-width: 0; }
& .tabular { margin: .6rem 0 1.3rem; }
& figcaption { font: .85rem/1.45 var(--sans); max-width: 44rem; margin: 0 0 .45rem; }
& .note { font: .8rem/1.45 var(--sans); color: var(--soft); margin: .4rem 0 0; }
& .scroll { overflow-x: auto; max-width: 100%; }
& table { border-collapse: collapse; table-layout: auto; margin: 0; font: .875rem/1.4 var(--sans);
  border: solid currentColor; border-width: 1.5px 0; font-variant-numeric: tabular-nums; }
& th, & td { padding: .32rem 1.1rem .32rem 0; text-align: left; vertical-align: top; border: 0; background: none;
  max-width: 26rem; overflow-wrap: break-word; }
& th:last-child, & td:last-child { padding-right: 0; }
& thead tr > * { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid currentColor; max-width: 11rem; }
& tbody th { font-weight: 400; max-width: min(26rem, 55vw); }
& tbody tr + tr > * { border-top: 1px solid var(--rule); }
& td.n, & th.n { text-align: right; white-space: nowrap; } & thead th.n { white-space: normal; }
& .pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1.4rem 2.2rem; margin: .8rem 0 1.2rem; }
& .pictures figure { max-width: 31rem; }
& .pictures svg { display: block; width: 100%; height: auto; }
& .pictures svg text { font-family: var(--sans) !important; }
& .pictures svg * { stroke-linejoin: round; stroke-linecap: butt; }
& .pictures figcaption { margin: .5rem 0 .3rem; }
& details { font: .8rem/1.4 var(--sans); }
& summary { cursor: pointer; color: var(--soft); padding: .2rem 0; }
& details table { font-size: .8rem; margin: .3rem 0; }
& a { color: inherit; text-decoration-color: var(--rule); text-underline-offset: .2em; }
& a:hover { text-decoration-color: currentColor; }
& :focus-visible { outline: 2px solid #2f8fc4; outline-offset: 2px; }
@media print {
  & section { padding-top: 1.2rem; } & nav, & details:not([open]) { display: none !important; }
  & .scroll { overflow: visible; } & figure, & tr, & .headline { break-inside: avoid; } & h2 { break-after: avoid; } }
"""

_PAGE_CSS = """
:root { color-scheme: light dark; }
body { margin: 0; color: #1b1c1d; background: #fff; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
& { --paper: #fff; max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
@media screen and (prefers-color-scheme: dark) {
  body { color: #e4e4e2; background: #131415; }
  & { --paper: #131415;
    --series-0: #4da6e0; --series-1: #ee7f3a; --series-2: #2cb88f; --series-3: #d98abf; --series-4: #dfa42a;
    --series-5: #86c8f0; --series-6: #b09df0; --series-7: #adadad; } }
& .scroll { background: linear-gradient(var(--paper), var(--paper)) right / 6px 100% no-repeat local,
  linear-gradient(var(--rule), var(--rule)) right / 4px 100% no-repeat scroll; } /* a bar: there is more to the right */
& nav { font: .875rem/1.4 var(--sans); margin: 1.3rem 0 0; }
& nav ol { list-style: none; columns: 10rem; column-gap: 1.5rem; margin: 0; padding: 0; }
& nav li { display: flex; gap: .6em; margin: 0; padding: .22rem 0; break-inside: avoid; }
& nav span { color: var(--soft); flex: 0 0 1.2em; text-align: right; font-variant-numeric: tabular-nums; }
@media (min-width: 68rem) {
  & { display: grid; grid-template-columns: 13rem minmax(0, 1fr); column-gap: 3rem; padding: 3rem 2rem 4rem; }
  & header, & .sections { grid-column: 2; }
  & nav { grid-column: 1; grid-row: 1 / span 2; align-self: start; position: sticky; top: 3rem; margin: 0;
    max-height: calc(100vh - 4rem); overflow-y: auto; }
  & nav ol { columns: auto; }
  & h1 { font-size: 2.1rem; } }
@media print {
  body { color: #000; background: #fff; font-size: 10pt; }
  & { display: block; max-width: none; padding: 0; } }
"""


def to_html(document: Document, page: bool = True, pictures: bool = True) -> str:
    """A page with its style and its pictures inside it: nothing is loaded. The same document makes the same bytes.

    Args:
        document: what to write.
        page: a whole page; else an element whose style is scoped under its class, for a notebook.
        pictures: draw them, which needs matplotlib; else their numbers stand in their place.

    Raises:
        ImportError: there are pictures to draw, and no matplotlib.
    """
    # Two cards in one notebook share its ids.
    prefix = "" if page else f"c{hashlib.sha256(repr(document).encode()).hexdigest()[:8]}-"
    tables, figures = count(1), count(1)
    sections = "\n".join(
        _section(section, number, prefix, tables, figures, pictures)
        for number, section in enumerate(document.sections, start=1)
    )
    header = _header(document)
    if not page:
        return f'<div class="{CLASS}">\n<style>{_scoped(_CSS)}</style>\n{header}\n{sections}\n</div>\n'
    links = "\n".join(
        f'<li><span>{number}</span><a href="#{section.key}">{html.escape(section.title)}</a></li>'
        for number, section in enumerate(document.sections, start=1)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(document.title)}</title>
<style>{_scoped(_CSS + _PAGE_CSS)}</style>
</head>
<body>
<main class="{CLASS}">
{header}
<nav aria-label="Contents">
<ol>
{links}
</ol>
</nav>
<div class="sections">
{sections}
</div>
</main>
</body>
</html>
"""


def svg(picture: Picture, key: str) -> str:
    """A picture as an `<svg>` element: its ink is the colour of the text around it, its ids begin with `key`.

    Raises:
        ImportError: there is no matplotlib.
    """
    buffer = io.BytesIO()
    drawn = panel(picture)
    with style():
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    names = {name: f"{key}-{i}" for i, name in enumerate(sorted({a or b for a, b in used}), start=1)}
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{names[m[1]]})", text)
    text = re.sub(r'href="#([^"]+)"', lambda m: f'href="#{names[m[1]]}"', text)
    text = text.replace(INK, "currentColor")
    for i, color in enumerate(PALETTE):
        text = text.replace(color, f"var(--series-{i}, {color})")
    box = re.search(r'viewBox="[^"]+"', text)
    assert box
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-labelledby="{key}-title">'
        f'<title id="{key}-title">{html.escape(picture.title)}</title>'
    )
    body = re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :])
    return start + re.sub(r"\n+", "\n", body).strip()


def _scoped(css: str) -> str:
    return css.replace("&", f".{CLASS}")


def _header(document: Document) -> str:
    tiles = "\n".join(
        f'<div><dt>{_inline(label)}</dt><dd class="value">{_inline(value)}</dd><dd>{_inline(note)}</dd></div>'
        for label, value, note in document.headline
    )
    headline = f'\n<dl class="headline">\n{tiles}\n</dl>' if tiles else ""
    verdict = (
        f'\n<p class="verdict {document.verdict.split()[0]}"><span>{_inline(document.label)}</span> '
        f"<strong>{html.escape(document.verdict)}</strong></p>"
        if document.verdict
        else ""
    )
    return (
        f'<header>\n<h1>{html.escape(document.title)}</h1>\n<p class="subtitle">{_inline(document.subtitle)}</p>'
        f"{verdict}{headline}\n</header>"
    )


def _section(
    section: Section, number: int, prefix: str, tables: Iterator[int], figures: Iterator[int], drawn: bool
) -> str:
    key = f"{prefix}{section.key}"
    parts = [f'<section id="{key}" aria-labelledby="{key}-heading">']
    parts.append(f'<h2 id="{key}-heading"><span class="number">{number}</span>{html.escape(section.title)}</h2>')
    parts += [f"<p>{_inline(paragraph)}</p>" for paragraph in section.text]
    for i, table in enumerate(section.tables, start=1):
        parts.append(_table(table, f"{key}-table-{i}", next(tables)))
    if section.pictures:
        parts.append('<div class="pictures">')
        for i, picture in enumerate(section.pictures, start=1):
            parts.append(_picture(picture, f"{key}-figure-{i}", next(figures), drawn))
        parts.append("</div>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table, key: str, number: int) -> str:
    note = f'\n<p class="note">{_inline(table.note)}</p>' if table.note else ""
    return (
        f'<figure class="tabular">\n<figcaption id="{key}"><b>Table {number}.</b> {_inline(table.title)}</figcaption>\n'
        f"{_cells(table, key)}{note}\n</figure>"
    )


def _picture(picture: Picture, key: str, number: int, drawn: bool) -> str:
    image = f"{svg(picture, key)}\n" if drawn else ""
    numbers = picture.numbers()
    note = f'<p class="note">{_inline(numbers.note)}</p>' if numbers.note else ""
    return (
        f'<figure>\n{image}<figcaption id="{key}"><b>Figure {number}.</b> {_inline(picture.caption)}</figcaption>\n'
        f"<details{'' if drawn else ' open'}><summary>Numbers of figure {number}</summary>\n"
        f"{_cells(numbers, key)}{note}</details>\n</figure>"
    )


def _cells(table: Table, key: str) -> str:
    """The table itself, in a box of its own to scroll in, also with keys where it may be wider than a phone."""
    kinds = [' class="n"' if numeric else "" for numeric in table.numeric]
    widths = [max(len(cell) for cell in column) for column in zip(table.header, *table.rows, strict=True)]
    least = [min(width, 12 if i else 18) for i, width in enumerate(widths)]
    head = "".join(
        f'<th scope="col"{kind} style="min-width:{width}ch">{_inline(name)}</th>'
        if name
        else f'<td style="min-width:{width}ch"></td>'
        for name, kind, width in zip(table.header, kinds, least, strict=True)
    )
    head = f"<thead><tr>{head}</tr></thead>\n" if any(table.header) else ""
    rows = "\n".join(
        f'<tr><th scope="row"{kinds[0]}>{_inline(row[0])}</th>'
        + "".join(f"<td{kind}>{_inline(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in table.rows
    )
    box = f' role="group" tabindex="0" aria-labelledby="{key}"' if sum(widths) > 36 else ""
    return f'<div class="scroll"{box}><table aria-labelledby="{key}">\n{head}<tbody>\n{rows}\n</tbody></table></div>'


def _inline(text: str) -> str:
    """Escaped, what stands between backticks as code, numbers as they are printed, long names with places to break.

    Examples:
        >>> _inline("the layer `a<b>` & more")
        'the layer <code>a&lt;b&gt;</code> &amp; more'
        >>> _inline("1.7e-07 to -0.2, `1e-07`")
        '1.7\u2009×\u200910<sup>−7</sup> to −0.2, <code>1e-07</code>'
    """
    parts = re.split(r"(`[^`]+`)", html.escape(text))
    for i in range(0, len(parts), 2):
        printed = re.sub(r"(?<![\w.-])-(?=\d)", "−", parts[i])
        printed = re.sub(r"(?<=\d) %", "\u00a0%", printed)
        parts[i] = re.sub(r"(?<![\w.])(\d[\d.]*)e([-+]\d+)(?![\w.]*\w)", _power, printed)
    escaped = re.sub(r"[\w.]{28,}", lambda name: name[0].replace(".", ".<wbr>"), "".join(parts))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def _power(number: re.Match[str]) -> str:
    return f"{number[1]}\u2009×\u200910<sup>{int(number[2])}</sup>".replace("<sup>-", "<sup>−")
