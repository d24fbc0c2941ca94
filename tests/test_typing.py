"""A user's script with every public name: type checkers pass on it, and it runs."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_equiv
from lightning_equiv import datasets

SCRIPT = Path(__file__).with_name("user_script.py")
ROOT = Path(__file__).parents[1]


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def mypy(script: Path) -> subprocess.CompletedProcess[str]:
    """As a user has it: strict, without our settings; errors inside the package are not theirs."""
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache' / 'user'}"]
    return checked(sys.executable, "-m", "mypy", *options, str(script))


def pyright(script: Path) -> subprocess.CompletedProcess[str]:
    return checked(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(script))


def test_the_script_uses_every_public_name() -> None:
    used = {node.id for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Name)}
    assert {*lightning_equiv.__all__, *datasets.__all__} - used == set()


def test_the_script_needs_no_cast() -> None:
    text = SCRIPT.read_text()
    assert not [word for word in ("cast(", "type: ignore", "Any", "pyright:") if word in text]


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_pass_on_it_and_would_not_on_a_wrong_type(checker: object, tmp_path: Path) -> None:
    assert callable(checker)
    passed = checker(SCRIPT)
    assert passed.returncode == 0, passed.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text(SCRIPT.read_text().replace("value: Tensor = error.compute()", "value: str = error.compute()"))
    failed = checker(wrong)
    assert failed.returncode == 1
    assert "str" in failed.stdout


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "elhag2025relaxed" in capsys.readouterr().out
    assert (tmp_path / "report.md").is_file()


def test_datasets_are_an_attribute_that_is_imported_when_asked_for() -> None:
    code = "import sys, lightning_equiv as le; print('lightning_equiv.datasets' in sys.modules, 'datasets' in dir(le))"
    code += "; print(le.datasets.GravityDataModule.__name__)"
    assert checked(sys.executable, "-c", code).stdout.split() == ["False", "True", "GravityDataModule"]
    with pytest.raises(AttributeError, match="'lightning_equiv' has no attribute 'dataset'"):
        _ = lightning_equiv.dataset
