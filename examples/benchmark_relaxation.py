"""What relaxing layers costs: a training step relaxed against strict, and the network before against after.

Also what an optimizer's step alone costs that divides by the largest singular values of its blocks, against Adam's.

    python examples/benchmark_relaxation.py --csv docs/results/benchmark_relaxation.csv

One thread, processor time; medians of rounds in which the ways take turns. Memory is what autograd keeps for the
backward pass.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nbody_constraint_relaxation import LAYERS, SYMMETRY
from torch import Tensor

from lightning_equiv import RECM, BlockNormalizedAdam, ConstraintRelaxation
from lightning_equiv.datasets.nbody import charged_dataset
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.tasks import Particles


def seconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of processor time of every call, taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            times[i].append(time.process_time() - start)
    return [statistics.median(t[len(t) // 5 :]) for t in times]


def stepper(module: Particles, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One optimiser step of a hand-written loop."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return step


def saved_megabytes(step: Callable[[], None]) -> float:
    """What one step keeps for its backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return sum(kept.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--fast-dev-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if options.fast_dev_run else options.rounds
    batch = charged_dataset(50, steps=10)

    def fresh() -> Particles:
        torch.manual_seed(0)
        return Particles(E3nnMessagePassing("16x0e+16x1o", 3), lr=0.0)

    strict, relaxed, projected, recurrent = (fresh() for _ in range(4))
    strategy, dormant = (ConstraintRelaxation(SYMMETRY, LAYERS) for _ in range(2))
    recm = RECM(SYMMETRY, LAYERS, "net", target="targets")
    strategy.attach(relaxed)
    strategy.relax(0.1)
    dormant.attach(projected)
    recm.attach(recurrent)
    steps = [stepper(m, batch) for m in (strict, relaxed, projected)]
    recurrent_step, count = stepper(recurrent, batch), itertools.count()

    def with_state() -> None:
        recm.update(next(count), 10**6)
        recurrent_step()

    steps.append(with_state)
    memory = [saved_megabytes(step) for step in steps]
    times = seconds(steps, rounds)
    parameters = [sum(p.numel() for p in m.parameters()) for m in (strict, relaxed, projected, recurrent)]
    for held in (strategy, dormant, recm):
        held.detach()
    inputs = [batch[key] for key in ("charges", "positions", "velocities")]
    with torch.inference_mode():
        before, after = seconds([lambda: strict.net.eval()(*inputs), lambda: relaxed.net.eval()(*inputs)], rounds)
    optimizers = torch.optim.Adam(strict.parameters(), lr=0.0), BlockNormalizedAdam(strict, lr=0.0)
    strict.training_step(batch, 0).backward()
    adam, normalized = seconds([optimizer.step for optimizer in optimizers], rounds)

    rows = [["", "ms", "x strict", "MiB kept for backward", "x strict", "parameters"]]
    names = (
        "training step, strict",
        "training step, relaxed",
        "training step, theta at 0",
        "training step, RECM",
    )
    for name, t, m, p in zip(names, times, memory, parameters, strict=True):
        rows.append([name, f"{1e3 * t:.2f}", f"{t / times[0]:.2f}", f"{m:.2f}", f"{m / memory[0]:.2f}", str(p)])
    rows.append(["inference, never relaxed", f"{1e3 * before:.2f}", "1.00", "", "", str(parameters[0])])
    rows.append(["inference, after detach", f"{1e3 * after:.2f}", f"{after / before:.2f}", "", "", str(parameters[0])])
    rows.append(["RECM's step, x relaxed", "", f"{times[3] / times[1]:.2f}", "", f"{memory[3] / memory[1]:.2f}", ""])
    rows.append(["optimizer alone, Adam", f"{1e3 * adam:.2f}", f"{adam / times[0]:.2f}", "", "", ""])
    name = "optimizer alone, block-normalised Adam"
    rows.append([name, f"{1e3 * normalized:.2f}", f"{normalized / times[0]:.2f}", "", "", ""])
    rows.append(["block-normalised Adam, x Adam", "", f"{normalized / adam:.2f}", "", "", ""])
    for row in rows:
        print("".join(f"{cell:>40}" for cell in row))
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        print(f"written: {options.csv}")


if __name__ == "__main__":
    main()
