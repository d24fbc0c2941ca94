"""Every block of Python in README.md and the pages of the docs runs as pasted, in page order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, blocks_of, long_lines_of, pages, plain_formulas_of

# How many blocks fail when pasted, by page. What is mended is taken off; nothing is put on.
FAILING: dict[str, int] = {}
# Blocks under `<!-- not run: why -->`, by page: what needs a download, a cluster or the reader's network.
NOT_RUN = {"comparing.md": 2, "constraint_relaxation.md": 1, "real_data.md": 3}
# Lines of code of more than 80 columns, and lines of formulas that are indented as code: may only become fewer.
LONG_LINES: dict[str, int] = {}
PLAIN_FORMULAS: dict[str, int] = {}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the package as a wheel installs it: of $LIGHTNING_EQUIV_WHEEL, or else a copy of what goes in."""
    folder = tmp_path / "installed"
    if wheel := os.environ.get("LIGHTNING_EQUIV_WHEEL"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    else:
        shutil.copytree(ROOT / "lightning_equiv", folder / "lightning_equiv")
    return folder


def python_blocks() -> dict[str, list[Block]]:
    found = {page: [b for b in blocks_of(text) if b.language in ("python", "py")] for page, text in pages().items()}
    return {page: blocks for page, blocks in found.items() if blocks}


def run_pages(code: dict[str, list[list[object]]], installed: Path, folder: Path) -> dict[str, dict]:
    """What tests/run_pages.py says of each page."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore"}
    script = [sys.executable, str(ROOT / "tests" / "run_pages.py"), str(installed), str(folder)]
    done = subprocess.run(
        script, input=json.dumps(code), capture_output=True, text=True, env=environment, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return {answer["page"]: answer for answer in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each page is forked")
def test_every_block_of_every_page_runs_as_pasted(installed: Path, tmp_path: Path) -> None:
    code = {page: [[b.line, b.code] for b in blocks if b.why is None] for page, blocks in python_blocks().items()}
    once = {tuple(block for _, block in blocks): page for page, blocks in reversed(code.items())}
    code = {page: code[page] for page in once.values()}  # the front page may have the README's script
    answers = run_pages(code, installed, tmp_path / "pages")
    assert answers.keys() == code.keys()
    failed = {page: answer["failed"] for page, answer in answers.items() if answer["failed"]}
    assert {page: len(errors) for page, errors in failed.items()} == FAILING, failed
    assert sum(answer["seconds"] for answer in answers.values()) < 180  # of one core


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each page is forked")
def test_what_fails_on_a_page_is_seen(installed: Path, tmp_path: Path) -> None:
    page = "```python\nimport torch\n```\n\n1. In a list\n\n    ```python\n    x = torch.ones(3)\n    ```\n\n"
    page += "```python\nprint(y)\n```\n\n```python\nfrom tests.pages import ROOT\n```\n\n```python\nPath('.')\n```\n\n"
    page += "```yaml\na: 1\n```\n\n<!-- not run: it is slow -->\n```python\nraise SystemExit\n```\n"
    blocks = blocks_of(page)
    assert [(b.language, b.why, b.line) for b in blocks[::4]] == [("python", None, 2), ("python", None, 20)]
    assert (blocks[-1].why, len(blocks)) == ("it is slow", 7)
    code = [[b.line, b.code] for b in blocks if b.language == "python" and b.why is None]
    answers = run_pages(
        {"first.md": code, "second.md": [[7, "print(x)"], [9, "raise SystemExit(0)"]]}, installed, tmp_path
    )
    errors = [["NameError", 12], ["ModuleNotFoundError", 16], ["NameError", 20]]  # a checkout is not there, nor `Path`
    assert [[error.partition(":")[0], line] for line, error in answers["first.md"]["failed"]] == errors
    assert [error.partition(":")[0] for _, error in answers["second.md"]["failed"]] == ["NameError", "SystemExit"]


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    not_run = {page: sum(b.why is not None for b in blocks) for page, blocks in python_blocks().items()}
    assert {page: count for page, count in not_run.items() if count} == NOT_RUN
    comments = sum(len(re.findall("^ *<!-- not run", text, re.MULTILINE)) for text in pages().values())
    assert comments == sum(NOT_RUN.values())  # none is out of its place, where it says nothing


def test_code_is_no_wider_than_a_page() -> None:
    long = {page: len(long_lines_of(text)) for page, text in pages().items()}
    assert {page: n for page, n in long.items() if n > LONG_LINES.get(page, 0)} == {}


def test_formulas_are_not_written_as_code() -> None:
    plain = {page: len(plain_formulas_of(text)) for page, text in pages().items()}
    assert {page: n for page, n in plain.items() if n > PLAIN_FORMULAS.get(page, 0)} == {}
