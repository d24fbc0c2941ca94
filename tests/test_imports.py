"""What the package's files may import, and how long they may be."""

import ast
from pathlib import Path

import pytest

import lightning_equiv

PACKAGE = Path(lightning_equiv.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
CHAPTERS = {"groups", "wiring", "metrics", "strategies", "modules", "datasets"}
# Each chapter with those that it may import, itself among them.
MAY_IMPORT = {
    "groups": {"groups"},
    "wiring": {"groups", "wiring"},
    "metrics": {"groups", "wiring", "metrics"},
    "strategies": {"groups", "wiring", "metrics", "strategies"},
    "modules": {"groups", "wiring", "metrics", "strategies", "modules"},
    "datasets": {"groups", "datasets"},
}
MOST_LINES = 400


def relative(path):
    return str(path.relative_to(PACKAGE))


def imported(path):
    """Dotted names of the modules that a file imports, anywhere in it, and of what it takes from them."""
    package = ["lightning_equiv", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_files_are_found():
    assert {"groups", "metrics", "strategies", "wiring"} <= {path.parent.name for path in FILES}
    assert "lightning_equiv.groups.element.GroupElement" in set(imported(PACKAGE / "groups" / "group.py"))
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))} <= CHAPTERS


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path):
    chapter = path.relative_to(PACKAGE).parts[0]
    if chapter not in CHAPTERS:
        return  # lightning_equiv/__init__.py takes from all
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "lightning_equiv":
            assert rest.split(".")[0] in MAY_IMPORT[chapter], f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_lightning_has_one_name(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "pytorch_lightning"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_that_passes_400_lines_is_two_files(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
