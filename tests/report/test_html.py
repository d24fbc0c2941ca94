"""The page: whole, safe, the same each time, and its style its own."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lightning_equiv.report.document import Document, Picture, Section, Table
from lightning_equiv.report.html import _PAGE_CSS, CLASS, to_html
from lightning_equiv.report.pictures import PALETTE
from tests.report.example import numbers_of

VOID = {"meta", "wbr"}
EVIL = "<script>alert('1')</script> & \"$x$\""


class Page(HTMLParser):
    """Fails where a tag is not closed in order; keeps text, ids and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.text, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


@pytest.fixture(scope="module")
def evil():
    data = {"labels": [EVIL, "b"], "series": {EVIL: {"value": [1.0, 2.0]}}, "x_label": EVIL, "y_label": EVIL}
    picture = Picture(EVIL, "bars", data, EVIL)
    table = Table(EVIL, (EVIL, "n"), ((EVIL, "1"),), EVIL)
    section = Section("a", EVIL, (EVIL, f"`{EVIL}`"), (table,), (picture, replace(picture, kind="bars")))
    return Document(EVIL, EVIL, "not equivariant", ((EVIL, EVIL, EVIL),), (section,))


def test_tags_are_balanced_and_ids_are_distinct(parsed):
    assert len(parsed.ids) == len(set(parsed.ids)) > 20


def typed(page):
    """The text of a page, its powers of ten as they are typed."""
    text = " ".join(page.text).replace("−", "-").replace("\u00a0", " ")
    return re.sub(r"\u2009×\u200910\s*(-?)(\d+)", lambda m: f"e{m[1] or '+'}{int(m[2]):02d}", text)


def test_every_number_is_on_the_page(parsed, document):
    text = typed(parsed)
    missing = [number for number in numbers_of(document) if number not in text]
    assert not missing


def test_nothing_is_loaded(page, parsed):
    assert not re.search(r"@import|<script|<link|<img|<iframe|<object", page)
    for name, value in parsed.attributes:
        if name != "xmlns":
            assert "//" not in (value or ""), (name, value)
        if name in ("href", "src", "xlink:href"):
            assert value[1:] in parsed.ids
    assert all(name in parsed.ids for name in re.findall(r"url\(#?([^)]*)\)", page))


def test_references_between_elements_hold(parsed):
    for name, value in parsed.attributes:
        if name == "aria-labelledby":
            assert value in parsed.ids


def test_the_same_document_is_the_same_bytes(page, document):
    assert to_html(document) == page


def test_the_time_is_not_in_it(page):
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)


def test_structure(parsed, document):
    assert parsed.named("html") == [{"lang": "en"}]
    assert len(parsed.named("h1")) == 1
    assert len(parsed.named("h2")) == len(parsed.named("section")) == len(document.sections)
    assert len(parsed.named("svg")) == len(document.pictures)
    assert all(svg["role"] == "img" and "width" not in svg for svg in parsed.named("svg"))
    assert all(cell["scope"] in ("row", "col") for cell in parsed.named("th"))
    assert len(parsed.named("table")) == len(parsed.named("thead")) + 1  # that of the settings has no header
    links = [attrs["href"] for attrs in parsed.named("a")]
    assert links == [f"#{section.key}" for section in document.sections]


def test_pictures_have_no_ink_of_their_own(page):
    drawn = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    colors = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r"var\(--series-\d, #[0-9a-f]{6}\)", "", drawn)))
    assert not colors
    assert "currentColor" in drawn
    assert "fill: white" not in drawn


def test_names_are_text(evil):
    text = to_html(evil)
    page = Page(text)
    assert not page.named("script")
    # Of the picture: its title, two axes, the label of a bar and the numbers.
    assert "".join(page.text).count("$x$") > 12
    assert not Page(to_html(evil, page=False)).named("script")


def test_long_names_break_at_their_dots(evil):
    name = "backbone.encoder.stages.0.blocks.1"
    text = to_html(replace(evil, subtitle=f"`{name}` of 0.25", sections=()))
    assert f"<code>{name.replace('.', '.<wbr>')}</code> of 0.25" in text


def test_a_fragment_styles_nothing_but_itself(document):
    small = replace(document, sections=document.sections[:2])
    text = to_html(small, page=False)
    page = Page(text)
    assert page.tags[0] == ("div", {"class": CLASS})
    assert not page.named("body")
    assert not page.named("nav")
    (css,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", re.sub(r"@media[^{]*\{", "", css)):
        for selector in selectors.split(","):
            assert selector.strip().startswith(f".{CLASS}"), selector


def test_two_fragments_share_no_id(document):
    pages = [
        Page(to_html(replace(document, title=title, sections=document.sections[:3]), page=False, pictures=False))
        for title in "ab"
    ]
    assert not set(pages[0].ids) & set(pages[1].ids)


def test_without_pictures_their_numbers_stand_open(document):
    page = Page(to_html(document, pictures=False))
    assert not page.named("svg")
    assert all("open" in attrs for attrs in page.named("details"))
    assert all(number in typed(page) for number in numbers_of(document))


@pytest.mark.parametrize("verdict", ["exact to rounding", "approximate", "not equivariant"])
def test_each_verdict_has_its_mark(document, verdict):
    text = to_html(replace(document, verdict=verdict, sections=()))
    mark = verdict.split()[0]
    assert f'class="verdict {mark}"' in text
    assert f".{CLASS} .{mark} {{ --mark:" in text


def test_every_colour_has_one_for_dark_pages():
    (dark,) = re.findall(r"prefers-color-scheme: dark\) \{(.*?)\} \}", _PAGE_CSS, re.DOTALL)
    assert [int(i) for i in re.findall(r"--series-(\d+): #", dark)] == list(range(len(PALETTE)))


def test_a_document_without_a_verdict_shows_none(document):
    text = to_html(replace(document, verdict="", sections=document.sections[:1]))
    page = Page(text)
    assert 'class="verdict' not in text
    assert document.subtitle in "".join(page.text)
