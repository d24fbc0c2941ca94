"""Every example runs, a few steps of it; what it writes is there and finite."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "audit_demo.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "nbody_remul.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "nbody_constraint_relaxation.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "digits_symmetry_cloning.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "nbody_symmetry_cloning.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "without_a_trainer.py": ["--out", "{out}"],
    "nbody_recm.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "shapes_constraint_relaxation.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "benchmark_relaxation.py": ["--csv", "{out}/relaxation.csv"],
    "benchmark_cloning.py": ["--csv", "{out}/cloning.csv"],
    "benchmark_wigner.py": ["--csv", "{out}/wigner.csv"],
    "benchmark_metrics.py": ["--csv", "{out}/metrics.csv"],
    "benchmarks/remul_cost.py": ["--output", "{out}"],
    "benchmarks/large_graph.py": ["--output", "{out}"],
    "benchmarks/gpu.py": ["--device", "cpu", "--csv", "{out}/gpu.csv"],
}


def test_every_example_has_a_row() -> None:
    examples = ROOT / "examples"
    scripts = [*examples.glob("*.py"), *examples.glob("benchmarks/*.py")]
    with_escnn = "benchmarks/agree_with_escnn.py"  # see below
    assert {path.relative_to(examples).as_posix() for path in scripts} == {*COMMANDS, with_escnn}


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_runs(script: str, tmp_path: Path) -> None:
    arguments = [argument.format(out=tmp_path) for argument in COMMANDS[script]]
    command = [sys.executable, str(ROOT / "examples" / script), "--fast-dev-run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    tables = list(tmp_path.glob("*.csv"))
    assert tables
    for table in tables:
        with table.open() as file:
            header, *rows = csv.reader(file)
        assert rows
        assert all(len(row) == len(header) for row in rows)
        numbers = [float(cell) for row in rows for cell in row if cell.replace(".", "").replace("e-", "").isdigit()]
        assert numbers
        assert all(math.isfinite(number) for number in numbers)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("escnn") is not None, reason="escnn is installed")
def test_the_comparison_with_escnn_skips_itself_without_it(tmp_path: Path) -> None:
    script = ROOT / "examples" / "benchmarks" / "agree_with_escnn.py"
    command = [sys.executable, str(script), "--fast-dev-run", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: escnn cannot be imported")
    assert not list(tmp_path.iterdir())
