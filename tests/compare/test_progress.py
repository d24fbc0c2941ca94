"""What compare says while it trains."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_equiv.compare import progress
from lightning_equiv.compare.way import Way
from tests.compare.toys import run


def test_the_time_left_is_that_of_the_runs_done_here() -> None:
    """Four of ten runs were there; two took 30 seconds each, so four more take 120: by hand."""
    clock = [0.0]
    bar = progress.Progress(10, True)
    bar._bar.fp, bar._bar._time = io.StringIO(), lambda: clock[0]
    bar._bar.start_t = bar._bar.last_print_t = 0.0
    bar.found(4)
    assert bar.line.startswith("run 5 of 10 |")
    assert "? left" in bar.line
    for _ in range(2):
        clock[0] += 30
        bar.finished()
    bar.now("REMUL, seed 1")
    assert bar.line.startswith("run 7 of 10: REMUL, seed 1 |")
    assert bar.line.endswith("| 01:00 so far, 02:00 left")
    for _ in range(4):
        bar.finished()
    assert bar.line.startswith("run 10 of 10")
    bar._bar.close()


def said(capsys: pytest.CaptureFixture[Any]) -> list[str]:
    """Every line of the bar, without what it says of time."""
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    return [line.partition("|")[0].strip() for line in lines if line.startswith("run")]


def test_a_comparison_says_which_run_of_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    settings = {"ways": {"plain": None, "again": Way()}, "seeds": 2, "progress": True}
    run(tmp_path / "runs.jsonl", **settings)
    lines = said(capsys)
    assert {"run 1 of 4: plain, seed 0", "run 2 of 4: again, seed 0", "run 4 of 4: again, seed 1"} <= {*lines}
    run(tmp_path / "runs.jsonl", **{**settings, "seeds": 3})
    assert "run 1 of 6" in said(capsys)[0]
    run(tmp_path / "runs.jsonl", **{**settings, "progress": False})
    assert capsys.readouterr().err == ""
