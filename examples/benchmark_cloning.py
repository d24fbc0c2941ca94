"""How well and how fast students clone families of equivariant maps.

    python examples/benchmark_cloning.py --csv docs/results/benchmark_cloning.csv

Relative MSE and relative equivariance error on fresh draws after phase one of symmetry cloning; one thread, batch 128.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import nn

from lightning_equiv import (
    CircularConvolution,
    ConditionalBilinear,
    ConditionalMLP,
    EquivariantLinear,
    GroupConvolution,
    equivariance_error,
)
from lightning_equiv.layers.teachers import Teacher
from lightning_equiv.strategies.symmetry_cloning.cloning import Pair, clone
from lightning_equiv.strategies.symmetry_cloning.inputs import Draws, Settings, noise


def row(name: str, teacher: Teacher, student: nn.Module, steps: int, lr: float) -> list[str]:
    settings = Settings(steps, 128, lr, tolerance=1e-9, resample="step", match="output", seed=0)
    draws = Draws(teacher, noise((teacher.in_shape,), settings), settings, torch.zeros(()))
    start = time.perf_counter()
    report = clone(Pair(student, teacher, "output"), draws, settings, lambda step, error: None)
    seconds = time.perf_counter() - start
    (args, _), tau = draws(-1)
    error = equivariance_error(student, (*args, tau), teacher.symmetry, num_samples=4)
    parameters = sum(p.numel() for p in student.parameters())
    measured = f"{report.error:.1e}", f"{float(error.square().mean().sqrt()):.1e}", f"{seconds:.1f}"
    return [name, type(student).__name__, str(parameters), str(steps), *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--fast-dev-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shorter = 1000 if options.fast_dev_run else 1
    teachers = {
        "shifts of a ring of 8, 3 taps": CircularConvolution((8,), 3),
        "shifts of an 8 x 8 torus, 3 x 3": CircularConvolution((8, 8), 3),
        "C4, 8 x 8, 3 x 3, lifted": GroupConvolution("C4", 8, 3, lift=True),
        "O(3), 4x0e+4x1o linear": EquivariantLinear("4x0e+4x1o", "4x0e+4x1o"),
    }
    rows = [["teacher", "student", "parameters", "steps", "relative MSE", "relative equivariance error", "seconds"]]
    for name, teacher in teachers.items():
        for student, steps, lr in (("bilinear", 1000, 1e-2), ("mlp", 1000, 1e-3), ("mlp", 6000, 1e-3)):
            torch.manual_seed(0)
            made = (
                ConditionalBilinear.like(teacher)
                if student == "bilinear"
                else ConditionalMLP.like(teacher, width=16 if options.fast_dev_run else 256)
            )
            rows.append(row(name, teacher, made, max(1, steps // shorter), lr))
            print(" | ".join(rows[-1]), flush=True)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        print(f"written: {options.csv}")


if __name__ == "__main__":
    main()
