"""What the package's files may import, and how long they may be."""

import ast
from pathlib import Path

import pytest

import lightning_equiv

PACKAGE = Path(lightning_equiv.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# The rooms from the ground up; a room imports from itself and from those below it.
ROOMS = [
    "wiring",
    "groups",
    "representations",
    "symmetry",
    "datasets",
    "layers",
    "metrics",
    "optim",
    "strategies",
    "report",
    "symmetrize",
    "discovery",
    "audit",
    "compare",
    "modules",
    "networks",
]
ALONE = {"wiring"}  # imports nothing else of ours
FREE = {"_checks", "_random"}  # below all rooms
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
    assert "lightning_equiv.groups.group.Group" in set(imported(PACKAGE / "groups" / "rotation.py"))
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room not in ROOMS:
        return  # lightning_equiv/__init__.py takes from all
    below = set() if room in ALONE else {*ROOMS[: ROOMS.index(room)], *FREE}
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "lightning_equiv":
            assert rest.split(".")[0] in {room, *below}, f"{relative(path)} imports {name}"


def test_no_file_imports_itself_through_others():
    """Also for type checkers alone, and inside functions."""
    modules = {".".join(("lightning_equiv", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    below = {
        name: {m for i in imported(path) for m in (i, i.rpartition(".")[0]) if m in modules and m != name}
        for name, path in modules.items()
    }
    while free := {name for name, needs in below.items() if not needs & below.keys()}:
        below = {name: needs for name, needs in below.items() if name not in free}
    assert not below, f"an import circle goes through {sorted(below)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_the_parts_of_a_strategy_are_its_own(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[1:2] == ["strategies"] and (PACKAGE / "strategies" / parts[2]).is_dir() and parts[3] != "callback":
            assert parts[2] in path.parts, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_lightning_has_one_name(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "pytorch_lightning"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_that_passes_400_lines_is_two_files(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
