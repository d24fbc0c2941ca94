"""The figures of a comparison, each against numbers by hand."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lightning_equiv.compare.comparison import Comparison
from tests.compare.synthetic import record, records

TABLE = {"remul": [0.5, 0.7, 0.4], "plain": [1.0, 1.5, 0.9], "augmentation": [0.8, 1.1, 0.95]}


def test_ways_cases_and_seeds_keep_their_order():
    comparison = Comparison([*records(TABLE, "b"), record("ace", 7, "a")])
    assert comparison.ways == ("remul", "plain", "augmentation", "ace")
    assert comparison.cases == ("b", "a")
    assert comparison.seeds == (0, 1, 2, 7)


def test_the_reference_is_plain_or_the_first_or_what_is_asked_for():
    assert Comparison(records(TABLE)).reference == "plain"
    assert Comparison(records(TABLE), reference="augmentation").reference == "augmentation"
    assert Comparison(records({"b": [1.0], "a": [2.0]})).reference == "b"
    with pytest.raises(ValueError, match=r"one of the ways \['remul', 'plain', 'augmentation'\], got 'strict'"):
        Comparison(records(TABLE), reference="strict")


def test_figures_are_those_of_the_metrics():
    comparison = Comparison(records(TABLE))
    assert comparison.figures("", "mse") == {way: dict(enumerate(values)) for way, values in TABLE.items()}
    assert comparison.figures("", "no such metric") == {}
    assert comparison.judged("") == ("mse",)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_differences_are_paired_by_seed(mode):
    """Relative where small is good: there all seeds agree on the ratio, so that every mean of ratios is that ratio."""
    plain = np.array([1.0, 1.5, 0.9])
    way = 0.8 * plain if mode == "min" else plain + np.array([0.2, -0.1, 0.4])
    run = records({"plain": plain.tolist(), "way": way.tolist()}, mode=mode)
    found = Comparison(run).differences[""]["mse"]
    assert list(found) == ["way"]
    assert found["way"].relative is (mode == "min")
    assert found["way"].seeds == 3
    assert found["way"].value == pytest.approx(-0.2 if mode == "min" else np.mean(way - plain), abs=1e-12)


def test_a_figure_that_is_not_positive_is_not_compared_by_its_ratio():
    (difference,) = Comparison(records({"plain": [1.0, 2.0], "way": [0.5, 0.0]})).differences[""]["mse"].values()
    assert not difference.relative
    assert difference.value == pytest.approx(-1.25)


def test_a_seed_that_the_reference_lacks_is_in_no_difference():
    table = records({"plain": [1.0, 2.0], "way": [3.0, 4.0, 500.0]}, mode="max")
    difference = Comparison(table).differences[""]["mse"]["way"]
    assert (difference.seeds, difference.value) == (2, 2.0)
    alone = [record("plain", 0), record("way", 1)]
    assert Comparison(alone).differences[""]["mse"] == {}


def test_costs_are_medians_of_ratios_within_a_seed():
    """The clock says the contrary, and the medians of the times would give another ratio."""
    plain, way, steps = np.array([10.0, 40.0, 20.0]), np.array([30.0, 44.0, 50.0]), np.array([100, 110, 100])
    runs = [record("plain", s, cpu_seconds=t, seconds=9 * t) for s, t in enumerate(plain)]
    runs += [
        record("way", s, cpu_seconds=t, seconds=1.0, steps=int(n), inference_ms=t)
        for s, (t, n) in enumerate(zip(way, steps, strict=True))
    ]
    comparison = Comparison(runs)
    expected = np.median((way / steps) / (plain / 100))
    assert comparison.costs("") == pytest.approx({"plain": 1.0, "way": expected})
    assert expected != pytest.approx(np.median(way / steps) / np.median(plain / 100))
    assert comparison.inference("")["way"] == pytest.approx(np.median(way / 2.0))


def test_on_other_devices_the_clock_counts_and_never_across_devices():
    runs = [record("plain", device="cuda", seconds=10.0), record("way", device="cuda", seconds=25.0)]
    assert Comparison(runs).costs("")["way"] == 2.5
    assert "way" not in Comparison([record("plain"), runs[1]]).costs("")


def test_equivariance_errors_by_test_set():
    runs = [record(seed=s, equivariance_error={"test": 0.1 * s, "ood": None}) for s in (1, 2)]
    assert Comparison(runs).equivariance_errors("") == {"test": {"plain": {1: 0.1, 2: 0.2}}}


def test_runs_that_failed_are_counted_and_in_no_figure():
    runs = records({"plain": [1.0, 2.0, 3.0], "way": [1.0]})
    runs += [
        record("way", 1, status="diverged", message="nan at step 7", metrics={"mse": 1e9}),
        record("way", 2, status="failed", message="CUDA out of memory", metrics=None, steps=None, curve=None),
        record("other", 0, metrics={"mse": math.nan}),
    ]
    comparison = Comparison(runs)
    assert comparison.figures("", "mse")["way"] == {0: 1.0}
    assert "other" not in comparison.figures("", "mse")
    assert [(f.way, f.seed, f.status) for f in comparison.failures] == [
        ("way", 1, "diverged"),
        ("way", 2, "failed"),
        ("other", 0, "no figure"),
    ]
    assert comparison.problems == {
        "": {
            "way": "diverged and failed in 2 of 3 runs: nan at step 7 (and 1 other message)",
            "other": "ended without a figure in 1 of 1 runs: mse is nan",
        }
    }


def test_advice_is_on_every_case_and_judged_figure():
    both = {"judged": ["mse", "mae"]}
    runs = [record(way, 0, case, metrics={"mse": 1.0, "mae": 2.0}, **both) for case in "ab" for way in ("plain", "w")]
    several = Comparison(runs)
    assert {sentence[:3] for sentence in several.advice} == {"a: ", "b: "}
    assert [f"a: {s}" for s in several.advice_on("a")] == [s for s in several.advice if s.startswith("a")]
    assert [s.partition(": ")[0] for s in several.advice_on("b")] == ["`mse`", "`mae`"]
    one = Comparison(runs[:2])
    assert one.advice == one.advice_on("a")


def test_without_the_reference_there_is_nothing_to_advise():
    runs = [record("plain", status="failed", metrics={}), record("way")]
    assert Comparison(runs).advice == ["`plain`, which the others are compared with, has no `mse`: run it again."]
    assert Comparison(runs).costs("") == {}


def test_other_fingerprints_are_refused():
    runs = [*records(TABLE), record("ace", 1, fingerprint="other"), record("ace", 2, fingerprint="other")]
    with pytest.raises(
        ValueError, match=r"'ace' \(seeds 1 and 2\) has others than 'plain' \(seed 0\).*another results"
    ):
        Comparison(runs)
    assert Comparison([*records(TABLE), record("ace", case="other", fingerprint="other")]).cases == ("", "other")


def test_other_batches_are_said():
    other = {"1": "other"}
    runs = [*records(TABLE), record("ace", 1, batches=other), record("ace", 2, batches=other)]
    (warning,) = Comparison(runs).warnings
    assert "`ace` was trained on other batches than `plain` with seeds 1 and 2" in warning
    assert Comparison(records(TABLE)).warnings == ()


def test_what_is_no_comparison_is_refused():
    with pytest.raises(ValueError, match="at least one run, got none"):
        Comparison([record(kind="trial", trial=0)])
    with pytest.raises(ValueError, match=r"each run once, got RunKey.*'plain'.*more than once"):
        Comparison([record(), record()])
    with pytest.raises(ValueError, match="run, trial, cost, got 'job'"):
        Comparison([record(kind="job")])


def test_it_is_loaded_from_one_or_several_files(tmp_path):
    for name, part in (("a", records(TABLE)), ("b", [record("ace")])):
        (tmp_path / name).write_text("".join(f"{json.dumps(r)}\n" for r in part))
    comparison = Comparison.load(tmp_path / "a", tmp_path / "b", reference="ace", title="T")
    assert comparison.ways == ("remul", "plain", "augmentation", "ace")
    assert (comparison.reference, comparison.title) == ("ace", "T")
    with pytest.raises(FileNotFoundError, match=r"there is no '.*missing'"):
        Comparison.load(tmp_path / "a", tmp_path / "missing")


def test_it_does_not_change():
    comparison = Comparison(records(TABLE))
    with pytest.raises(FrozenInstanceError):
        comparison.reference = "remul"


def test_costs_that_were_measured_side_by_side_come_first():
    runs = [record("plain", 0, cpu_seconds=1.0), record("remul", 0, cpu_seconds=9.0)]
    timed = [{"kind": "cost", "case": "", "way": w, "seed": -1, "trial": None, "step_seconds": s}
             for w, s in (("plain", 2.0), ("remul", 3.0), ("gone", 1.0))]  # fmt: skip
    assert Comparison(runs).costs("") == {"plain": 1.0, "remul": 9.0}
    assert Comparison([*runs, *timed]).costs("") == {"plain": 1.0, "remul": 1.5}


def test_test_inputs_that_were_trained_on_are_said():
    (warning,) = Comparison([record("plain", 0, trained_on=0.75), record("remul", 0, trained_on=0.75)]).warnings
    assert warning.startswith("Take care: 75 % of the test inputs were trained on")
    assert Comparison([record("plain", 0, trained_on=0.0), record("remul", 0, trained_on=None)]).warnings == ()
