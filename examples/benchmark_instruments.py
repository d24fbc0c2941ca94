"""What the instruments of a relaxed training cost: a measurement against a training step.

    python examples/benchmark_instruments.py --csv docs/results/benchmark_instruments.csv

Vector neurons on solids, and e3nn's message passing on charged particles, whose gates are functions that "dead" does
not see. One thread, processor time; medians of rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import nbody_constraint_relaxation as charges
import shapes_constraint_relaxation as solids
import torch
from benchmark_relaxation import seconds, stepper
from torch import Tensor

from lightning_equiv import ConstraintRelaxation, Instruments, Symmetry
from lightning_equiv.datasets import charged_dataset, shapes_dataset
from lightning_equiv.layers.choose import Layers
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.tasks import Particles, Task
from lightning_equiv.networks.vector_neurons import VNLinear

EVERY = 100


def relaxed(module: Task, symmetry: Symmetry, layers: Layers, measure: str | None, every: int) -> Task:
    """A module whose layers are relaxed and that measures, with a strategy attached for good."""
    instruments = None if measure is None else Instruments(measure, every=every)
    strategy = ConstraintRelaxation(symmetry, layers, instruments=instruments)
    strategy.attach(module)
    strategy.relax(0.1)
    return module


def rows(
    name: str,
    make: Callable[[], Task],
    symmetry: Symmetry,
    layers: Layers,
    batch: dict[str, Tensor],
    *,
    rounds: int,
    dead: bool,
) -> Iterator[list[str]]:
    """A training step, and each kind of measurement: its own time and its part of all."""
    kinds = ["loss", *["dead"] * dead, "curvature"]
    ways = [None, *kinds, " ".join(kinds)]
    steps = [stepper(relaxed(make(), symmetry, layers, measure, 1), batch) for measure in ways]
    step, *measured = seconds(steps, rounds)
    for kind, t in zip(ways[1:], measured, strict=True):
        cost = t - step
        share = cost / (EVERY * step + cost)
        yield [name, str(kind), f"{1e3 * step:.1f}", f"{1e3 * cost:.1f}", f"{100 * share:.1f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--fast-dev-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if options.fast_dev_run else options.rounds

    def particles() -> Particles:
        torch.manual_seed(0)
        return Particles(E3nnMessagePassing("16x0e+16x1o", 3), lr=0.0)

    table = [["network", "measured", "ms of a step", "ms of a measurement", f"of the time, every={EVERY}"]]
    bodies = shapes_dataset(32, num_points=128)
    table += rows("vector neurons", solids.model, solids.SYMMETRY, VNLinear, bodies, rounds=rounds, dead=True)
    batch = charged_dataset(50, steps=10)
    table += rows("e3nn", particles, charges.SYMMETRY, charges.LAYERS, batch, rounds=rounds, dead=False)
    for row in table:
        print("".join(f"{cell:>24}" for cell in row))
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(table)
        print(f"written: {options.csv}")


if __name__ == "__main__":
    main()
