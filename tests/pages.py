"""The pages of the docs as the tests read them: blocks of code, formulas, and what is still to be mended."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?P<comment> *<!-- not run: (?P<why>[^>]+) -->\n+)?"
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
COMMAND = re.compile(r"(\w+=\S+ )*(\$|python|pip|pytest|make|sh|git|cd|pre-commit|torchrun)\b")
EQUATION = re.compile(r" (=|<-|<=|->|:|minimise) |^\w+\(\w+\) [-+] ")


@dataclass(frozen=True)
class Block:
    """Code between fences; `why` it is not run, if so, and the line of the page at which it begins."""

    language: str
    code: str
    why: str | None
    line: int


def pages() -> dict[str, str]:
    """README.md and the pages of the docs, without those that mkdocstrings writes: name to text."""
    names = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {path.name: path.read_text() for path in names}


def blocks_of(text: str) -> list[Block]:
    """All blocks between fences, in the order of the page."""
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        language = match["language"].split()[0] if match["language"].strip() else ""
        found.append(Block(language, textwrap.dedent(match["code"]), match["why"], line))
    return found


def prose_of(text: str) -> str:
    """The page without code and comments."""
    return SPAN.sub("", COMMENT.sub("", FENCE.sub("", text)))


def formulas_of(text: str) -> tuple[list[str], list[str]]:
    """The formulas of a page, those in a line and those on their own."""
    prose = prose_of(text)
    on_their_own = re.findall(r"^ *\$\$\n(.+?)\n *\$\$$", prose, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *\$\$\n.+?\n *\$\$$", "", prose, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<![\\$])\$(?!\s)([^$]+?)(?<!\s)\$(?!\$)", rest), on_their_own


def indented_code_of(text: str) -> list[str]:
    """Lines indented as code, outside lists."""
    lines = FENCE.sub("", text).splitlines()
    found: list[str] = []
    for k, line in enumerate(lines):
        above = next((other for other in reversed(lines[:k]) if other and not other.startswith("    ")), "")
        in_list = re.match(r" *([*-]|\d+\.) |  \S", above)
        if line.startswith("    ") and not in_list:
            found.append(line[4:])
    return found


def plain_formulas_of(text: str) -> list[str]:
    """Lines indented as code that are not a command: formulas that no browser draws."""
    return [line for line in indented_code_of(text) if EQUATION.search(line) and not COMMAND.match(line.strip())]


def long_lines_of(text: str, width: int = 80) -> list[str]:
    """Lines of code that are wider than a page shows."""
    lines = [line for block in blocks_of(text) for line in block.code.splitlines()]
    return [line for line in lines + indented_code_of(text) if len(line) > width]
