"""Every example and every configuration of a benchmark runs, a few steps of it; what it writes is there and finite."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_equiv.__main__ import main

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "audit_demo.py": ["--no-progress", "--threads", "1", "--out", "{out}"],
    "quickstart.py": [],  # it only prints
    "nbody_remul.py": ["--out", "{out}"],
    "nbody_constraint_relaxation.py": ["--out", "{out}"],
    "digits_symmetry_cloning.py": ["--out", "{out}"],
    "nbody_symmetry_cloning.py": ["--out", "{out}"],
    "without_a_trainer.py": ["--out", "{out}"],
    "nbody_recm.py": ["--out", "{out}"],
    "shapes_constraint_relaxation.py": ["--out", "{out}"],
    "soften_digits.py": ["--out", "{out}"],
    "benchmark_relaxation.py": ["--csv", "{out}/relaxation.csv"],
    "benchmark_instruments.py": ["--csv", "{out}/instruments.csv"],
    "benchmark_cloning.py": ["--csv", "{out}/cloning.csv"],
    "benchmark_wigner.py": ["--csv", "{out}/wigner.csv"],
    "benchmark_metrics.py": ["--csv", "{out}/metrics.csv"],
    "benchmarks/remul_cost.py": ["--output", "{out}"],
    "benchmarks/rpp_weights.py": ["--out", "{out}"],
    "benchmarks/large_graph.py": ["--output", "{out}"],
    "benchmarks/symmetrize.py": ["--output", "{out}"],
    "benchmarks/results.py": ["--out", "{out}"],
    "benchmarks/earlier_runs.py": ["--out", "{out}"],
    "benchmarks/discovery.py": ["--out", "{out}"],
    "benchmarks/gpu.py": ["--device", "cpu", "--csv", "{out}/gpu.csv"],
    "benchmarks/relaxation/sets.py": ["--out", "{out}"],
    "benchmarks/relaxation/sets_callback.py": ["--out", "{out}"],
    "benchmarks/relaxation/eigenvalue.py": ["--out", "{out}"],
    "benchmarks/relaxation/hidden.py": ["--out", "{out}"],
}
# cases x ways (of molecules also two trials, of relaxation one) of each configuration, and ways that need what the
# tests do not
RUNS = {
    "aspirin": (5 * 3, ()),
    "charges_field": (4 * 9, ()),
    "charges_sizes": (2 * 7, ()),
    "digits_shifts": (2 * 4, ()),
    "digits_turns": (2 * 6, ()),
    "ethanol": (7 * 3, ()),
    "gravity": (8, ("SE(3)-Transformer",)),
    "relaxation_charges": (13 * 2, ()),
    "relaxation_deep": (13 * 2, ()),
    "relaxation_solids": (13 * 2, ()),
    "projection": (8, ()),
    "solids": (2 * 7, ()),
}


def test_every_example_has_a_row() -> None:
    examples = ROOT / "examples"
    parts = [path for path in examples.glob("benchmarks/*/*.py") if "__main__" in path.read_text()]
    scripts = [*examples.glob("*.py"), *examples.glob("benchmarks/*.py"), *parts]
    with_escnn = "benchmarks/agree_with_escnn.py"  # see below
    assert {path.relative_to(examples).as_posix() for path in scripts} == {*COMMANDS, with_escnn}
    assert {path.stem for path in examples.glob("benchmarks/*.yaml")} == {*RUNS}


def all_ok(file: Path) -> int:
    """How many runs of a comparison there are, once all ended well."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["case"], r["way"], r["message"]) for r in records if r["status"] != "ok"] == []
    return len(records)


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_runs(script: str, tmp_path: Path) -> None:
    arguments = [argument.format(out=tmp_path) for argument in COMMANDS[script]]
    command = [sys.executable, str(ROOT / "examples" / script), "--fast-dev-run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "/-2" not in done.stderr + done.stdout  # Lightning's bar of a run without a number of epochs
    written = [line for line in done.stdout.splitlines() if line.startswith(("written: ", "runs: "))]
    for file in tmp_path.glob("*.*"):
        if file.is_file() and file.suffix != ".lock":
            assert any(str(file.with_suffix("")) in line and file.suffix in line for line in written), file.name
    for file in tmp_path.glob("*_fast_dev_run.jsonl"):
        assert all_ok(file)
    if script == "quickstart.py":
        lines = [re.findall(r"\d+\.\d+", line) for line in done.stdout.splitlines()]
        assert [len(line) for line in lines] == [4, 4]  # plain, REMUL
        return
    if script == "benchmarks/earlier_runs.py":  # it only draws
        assert len(list(tmp_path.glob("*.png"))) == 2
        return
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
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore:.*torch-cluster:DeprecationWarning")  # while torch_geometric is imported
def test_every_configuration_of_a_benchmark_runs(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # one trajectory for all
    config, (runs, left_out) = ROOT / "examples" / "benchmarks" / f"{name}.yaml", RUNS[name]
    ways = [way for way in yaml.safe_load(config.read_text())["ways"] if way not in left_out]
    words = ["compare", "--config", str(config), "--fast-dev-run", "--no-progress", "--ways", *ways]
    main([*words, "--results", str(tmp_path / "runs.jsonl"), "--save", str(tmp_path / "table.csv")])
    assert all_ok(tmp_path / "runs.jsonl") == runs
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    with (tmp_path / "table.csv").open() as file:
        assert sum(row["way"] in ways for row in csv.DictReader(file)) >= sum(r["kind"] == "run" for r in records)


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
