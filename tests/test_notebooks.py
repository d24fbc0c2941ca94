"""The notebooks of the documentation: they run, what is committed was made by them, and it is small.

To make the outputs again: python -m tests.test_notebooks
"""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST_TEXT, LARGEST_PICTURE = 4_000, 60_000  # bytes
NAMES = [path.stem for path in NOTEBOOKS]


def executed(path: Path) -> Any:
    """The notebook, run in a new kernel and an empty folder."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"record_timing": False, "coalesce_streams": True, "resources": {"metadata": {"path": folder}}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", **settings).execute()
    return notebook


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in code_of(notebook) for output in cell.outputs]


def text_of(output: Any) -> str:
    if output.output_type == "stream":
        return output.text
    return "\n".join(value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_none_is_missing() -> None:
    assert NAMES == ["energies_and_forces", "images", "point_clouds"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
@pytest.mark.filterwarnings("ignore:.*event loop.*")  # of jupyter_client, by the platform
def test_a_notebook_runs_and_says_nothing_on_stderr(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("sklearn")
    pytest.importorskip("torch_geometric")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = executed(path)  # an error in a cell is raised
    assert [o.text for o in outputs_of(found) if o.get("name") == "stderr"] == []
    kinds = [[o.output_type for o in cell.outputs] for cell in code_of(found)]
    assert kinds == [[o.output_type for o in cell.outputs] for cell in code_of(nbformat.read(path, as_version=4))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_committed_outputs_are_whole_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert 15 <= len(notebook.cells) <= 25
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    outputs = outputs_of(notebook)
    assert {o.output_type for o in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {o.get("name") for o in outputs}
    assert max(len(text_of(o).encode()) for o in outputs) <= LARGEST_TEXT
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert max(map(len, pictures)) < LARGEST_PICTURE


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_figures_in_the_words_are_those_that_cells_printed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    printed: set[str] = set()
    checked = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "\n".join(map(text_of, cell.outputs))
            printed |= set(re.findall(r"\d+(?:\.\d+)?", text))
        elif printed:  # `compare` prints a column in units of 10⁻³: "8.83e-3"
            figures = re.findall(r"\d+\.\d+|\d+(?= %)", cell.source)
            assert [figure for figure in figures if figure not in printed] == []
            checked += len(figures)
    assert checked >= 3


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        nbformat.write(executed(notebook_path), notebook_path)
