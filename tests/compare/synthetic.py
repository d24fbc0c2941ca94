"""Records of a comparison made from numbers."""

from __future__ import annotations

import random

WAYS = ("plain", "augmentation", "REMUL", "ConstraintRelaxation", "RECM", "ACE", "SymmetryCloning", "symmetrize")
ANGLES = [15.0 * i for i in range(13)]


def record(way="plain", seed=0, case="", **changes):
    """A run that ended well."""
    return {
        "kind": "run",
        "case": case,
        "way": way,
        "seed": seed,
        "trial": None,
        "settings": {},
        "status": "ok",
        "message": "",
        "steps": 100,
        "seconds": 30.0,
        "cpu_seconds": 20.0,
        "peak_memory": 512.0,
        "parameters": 1000,
        "metrics": {"mse": 1.0},
        "equivariance_error": {},
        "profile": None,
        "inference_ms": 2.0,
        "curve": {},
        "monitor": "val_mse",
        "mode": "min",
        "judged": ["mse"],
        "batches": {"1": f"first of {seed}", "2": f"two of {seed}"},
        "fingerprint": f"fingerprint {case}",
        "versions": {"torch": "2.9.0", "commit": "0123abc"},
        "device": "cpu",
        "threads": 1,
        "date": "2026-01-01",
        **changes,
    }


def records(table, case="", **changes):
    """Runs with these values of `mse`.

    Args:
        table: way -> values, of seed 0, 1, ...
        case: of all.
        changes: of all.
    """
    return [
        record(way, seed, case, metrics={"mse": value}, **changes)
        for way, values in table.items()
        for seed, value in enumerate(values)
    ]


def realistic(cases=("without a field", "with a field"), ways=WAYS, seeds=5):
    """Errors that scatter by their logarithms, by way and by seed; one way diverges once in the last case."""
    draw = random.Random(0)
    found = []
    for c, case in enumerate(cases):
        for seed in range(seeds):
            data = draw.gauss(0.0, 0.15)
            for w, way in enumerate(ways):
                inside = 0.008 * 2.718 ** (data + draw.gauss(-0.25 * w, 0.1))
                outside = inside * (4.0 if way == "plain" else 1.1) * 2.718 ** draw.gauss(0.0, 0.05)
                cost = (1.0, 1.03, 1.85, 1.2, 1.4, 1.6, 2.1, 1.0)[w % 8] * 2.718 ** draw.gauss(0.0, 0.03)
                error = 0.7 * 0.4**w
                run = record(
                    way,
                    seed,
                    case,
                    metrics={"test_mse": inside, "test_mse_ood": outside, "val_mse": inside},
                    judged=["test_mse", "test_mse_ood"],
                    steps=8000,
                    seconds=420.0 * cost,
                    cpu_seconds=360.0 * cost,
                    peak_memory=700.0 + 40 * w,
                    parameters=794_755 + 1000 * w,
                    equivariance_error={"test": error * 2.718 ** draw.gauss(0.0, 0.1), "ood": error * 1.2},
                    profile={"angle": ANGLES, "error": [error * abs(a) / 90 * (1 + 0.05 * seed) for a in ANGLES]},
                    inference_ms=9.3 * (30.0 if way == "symmetrize" else 1.0),
                    curve={
                        "val_mse": [[s, 0.05 * s, inside * (1 + 40 * 0.9 ** (s / 100))] for s in range(100, 8001, 100)]
                    },
                    settings={"weight": 0.3 + 0.1 * c, "schedule": "cosine"} if way == "REMUL" else {},
                )
                if c == len(cases) - 1 and way == "RECM" and seed == 3:
                    run.update(status="diverged", message="val_mse was nan after 300 steps", metrics={}, profile=None)
                found.append(run)
    found += [record("REMUL", 0, cases[0], kind="trial", trial=t, settings={"weight": 0.1 * t}) for t in range(8)]
    return found
