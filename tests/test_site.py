"""The built site: its links lead somewhere, its formulas are drawn, and nothing is fetched from another site."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.pages import ROOT, formulas_of, pages

KATEX = ROOT / "docs" / "javascripts" / "katex" / "katex.min.js"
DRAW = """
const katex = require(process.argv[1]), formulas = JSON.parse(require("fs").readFileSync(0, "utf8")), wrong = []
for (const [page, tex] of formulas)
  try { katex.renderToString(tex.slice(2, -2), { displayMode: tex.startsWith("\\\\["), strict: "error" }) }
  catch (error) { wrong.push([page, tex, error.message]) }
console.log(JSON.stringify(wrong))
"""
needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the docs' tools")


@dataclass
class Page(HTMLParser):
    """What the tests ask of a page of HTML."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    emphasised: int = 0
    open: list[tuple[str, bool]] = field(default_factory=list)  # elements around, and whether each is code or a formula

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = dict(pairs)
        self.emphasised += tag == "em"
        self.ids |= {attributes.get("id") or "", (attributes.get("name") or "") if tag == "a" else ""}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"] or "")
        fetches = tag == "link" and (attributes.get("rel") or "") in ("stylesheet", "icon", "preload")
        if fetches or "src" in attributes:
            self.fetched.append(attributes.get("href" if fetches else "src") or "")
        formula = "arithmatex" in (attributes.get("class") or "").split()
        if formula:
            self.formulas.append("")
        if tag not in ("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"):
            self.open.append((tag, formula or tag in ("code", "pre", "script", "style")))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, apart in self.open if apart]
        if inside and inside[-1] in ("div", "span"):
            self.formulas[-1] += data
        elif not inside:
            self.prose.append(data)


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, Page]:
    return {path: read(path) for path in site.glob("**/index.html")}


def broken(html: dict[Path, Page], site: Path) -> Iterator[tuple[str, str]]:
    """Pages and what in them leads nowhere within the site."""
    for path, page in html.items():
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and target.is_relative_to(site.resolve())
            if there and parts.fragment and target.suffix == ".html":
                there = unquote(parts.fragment) in html[target].ids
            if not there:
                yield str(path.relative_to(site)), link


@needs_mkdocs
def test_every_link_and_every_anchor_of_the_site_leads_somewhere(site: Path, html: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in html.values()) > 1000
    assert list(broken(html, site)) == []


@needs_mkdocs
def test_nothing_is_fetched_from_another_site(site: Path, html: dict[Path, Page]) -> None:
    fetched = {link for page in html.values() for link in page.fetched}
    assert {link for link in fetched if urlsplit(link).netloc} == set()
    assert any(link.endswith("katex.min.js") for link in fetched)
    styles = KATEX.with_name("katex.min.css").read_text()
    fonts = set(re.findall(r"url\((fonts/[^)]+\.woff2)\)", styles))  # the first that a browser takes
    assert fonts == {f"fonts/{path.name}" for path in (site / "javascripts/katex/fonts").iterdir()}


@needs_mkdocs
def test_every_formula_is_an_element_that_is_drawn(site: Path, html: dict[Path, Page]) -> None:
    for name, text in pages().items():
        if name == "README.md":
            continue
        in_lines, on_their_own = formulas_of(text)
        path = site / ("" if name == "index.md" else name.removesuffix(".md")) / "index.html"
        found = [formula.strip() for formula in html[path].formulas]
        counts = [sum(formula.startswith(mark) for formula in found) for mark in ("\\(", "\\[")]
        assert counts == [len(in_lines), len(on_their_own)], name
        left = [part for part in html[path].prose if "$$" in part or "\\(" in part or "\\begin" in part]
        assert left == [], name
    assert sum(len(page.formulas) for page in html.values()) > 90


@needs_mkdocs
def test_docstrings_are_shown_as_they_are_written(site: Path, html: dict[Path, Page]) -> None:
    """Markdown takes the stars of `*args` outside backticks for emphasis, or leaves them."""
    pages = {path.parent.name: page for path, page in html.items() if path.is_relative_to(site / "api")}
    assert len(pages) > 10
    assert {name: page.emphasised for name, page in pages.items() if page.emphasised} == {}
    marks = ("*", "``", ":math:", ":class:", "$$", ">>>")
    left = [(name, part) for name, page in pages.items() for part in page.prose if any(m in part for m in marks)]
    assert left == []


@needs_mkdocs
@pytest.mark.skipif(shutil.which("node") is None, reason="KaTeX needs node, where there is no browser")
def test_katex_knows_what_the_formulas_say(html: dict[Path, Page]) -> None:
    formulas = [(str(path), formula.strip()) for path, page in html.items() for formula in page.formulas]
    formulas.append(("a wrong one", r"\(\frac{1}\)"))
    node = ["node", "-e", DRAW, str(KATEX)]
    done = subprocess.run(node, input=json.dumps(formulas), capture_output=True, text=True, check=True)
    assert [page for page, _, _ in json.loads(done.stdout)] == ["a wrong one"], done.stdout


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text('<a href="a/#there">x</a><a href="#here">x</a><img src="no.png">')
    (tmp_path / "a" / "index.html").write_text('<h2 id="there">x</h2><a href="../b/">x</a><a href="..">x</a>')
    html = {path: read(path) for path in sorted(tmp_path.resolve().glob("**/index.html"))}
    found = {link for _, link in broken(html, tmp_path.resolve())}
    assert found == {"#here", "no.png", "../b/"}
