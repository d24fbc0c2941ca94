"""The pictures of earlier runs, from their JSON in docs/results: nothing is trained.

    python examples/benchmarks/earlier_runs.py --out docs/results

The scripts of that time, which stand in the .md beside each .json, trained these runs and wrote their tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_equiv.report.document import Picture
from lightning_equiv.report.pictures import figure, save_png

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
Run = dict[str, Any]


def write(pictures: Sequence[Picture], path: Path, one_legend: bool = False) -> None:
    """All of them in one file."""
    save_png(figure(pictures, one_legend), path)
    print(f"written: {path}")


def names(runs: list[Run], key: str) -> list[Any]:
    """Ways or cases, in the order of the runs."""
    return list(dict.fromkeys(run[key] for run in runs))


def mean_and_range(points: Iterable[Sequence[float]]) -> dict[str, list[float]]:
    """A series: of each point the mean over seeds, the least and the largest."""
    points = list(points)
    return {part: list(map(of, points)) for part, of in (("value", fmean), ("low", min), ("high", max))}


def relaxation(runs: list[Run], path: Path) -> None:
    """Curves of training with the largest training set."""
    case = max(names(runs, "case"))
    score = "val_mse" if any("val_mse" in run["curves"] for run in runs) else "val_accuracy"
    panels = {
        score: f"{score}, strict network",
        f"constraint_relaxation/relaxed/{score}": f"{score}, relaxed network",
        "constraint_relaxation/theta": "theta",
        "constraint_relaxation/lie_penalty": "Lie penalty",
        "constraint_relaxation/relaxed/equivariance_error": "equivariance error, relaxed network",
    }
    pictures = []
    for name, title in panels.items():
        found = [run for run in runs if run["case"] == case and name in run["curves"]]
        steps = [step for step, _ in found[0]["curves"][name]]
        series: dict[str, dict[str, list[Any]]] = {}
        for way in names(runs, "way"):  # strict training has no theta, and keeps its colour
            seeds = [[value for _, value in run["curves"][name]] for run in found if run["way"] == way]
            series[way] = mean_and_range(zip(*seeds, strict=True)) if seeds else {"value": [None] * len(steps)}
        data = {
            "x": steps,
            "series": series,
            "x_label": "step",
            "y_label": title.split(",")[0],
            "log": title != "theta",
        }
        pictures.append(Picture(title, "curve", data, ""))
    write(pictures, path, one_legend=True)


def recm(runs: list[Run], path: Path) -> None:
    """Test error and theta of each layer against the field, and theta while training."""
    fields, ours = names(runs, "case"), [run for run in runs if run["way"] == "RECM"]
    layers = [f"recm/theta/net.layers.{layer}.update" for layer in range(3)]
    against = {"x": fields, "x_label": "strength of the field"}
    errors, ends, courses = {}, {}, {}
    for way in names(runs, "way"):
        tests = [[run["test"] for run in runs if (run["way"], run["case"]) == (way, field)] for field in fields]
        errors[way] = mean_and_range(tests)
    for layer, key in enumerate(layers):
        last = [[abs(run["curves"][key][-1][1]) for run in ours if run["case"] == field] for field in fields]
        ends[f"layer {layer}"] = mean_and_range(last)
    for field in (fields[0], fields[-1]):
        first = next(run for run in ours if (run["case"], run["seed"]) == (field, 0))
        for layer, key in enumerate(layers):
            courses[f"layer {layer}, field {field:g}"] = {"value": [value for _, value in first["curves"][key]]}
    course = {"x": [step for step, _ in ours[0]["curves"][layers[0]]], "x_label": "step", "y_label": "theta"}
    pictures = [
        Picture("Test error", "curve", {**against, "series": errors, "y_label": "test MSE"}, ""),
        Picture("Theta at the end", "curve", {**against, "series": ends, "y_label": "|theta|"}, ""),
        Picture("Theta while training, seed 0", "curve", {**course, "series": courses}, ""),
    ]
    write(pictures, path)


def cloning(runs: list[Run], path: Path) -> None:
    """Test accuracy of each way, a panel for each problem."""
    ways, pictures = names(runs, "way"), []
    for case in names(runs, "case"):
        tests = [[100 * run["test"] for run in runs if (run["way"], run["case"]) == (way, case)] for way in ways]
        series = {"test": mean_and_range(tests)}
        data = {"labels": ways, "series": series, "y_label": "test accuracy / %", "horizontal": True}
        pictures.append(Picture(case, "bars", data, ""))
    write(pictures, path)


DRAWN = {
    "nbody_constraint_relaxation_full": relaxation,
    "nbody_constraint_relaxation_long": relaxation,
    "shapes_constraint_relaxation_full": relaxation,
    "nbody_recm_full": recm,
    "digits_symmetry_cloning_full": cloning,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of what is written")
    parser.add_argument("--fast-dev-run", action="store_true", help="the first and the last alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    every = len(DRAWN) - 1 if options.fast_dev_run else 1
    for name in list(DRAWN)[::every]:
        DRAWN[name](json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), options.out / f"{name}.png")
