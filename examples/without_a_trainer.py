"""Strategies in a training loop written by hand: attach, train, finish.

An e3nn network on charged particles, strict and relaxed by `ConstraintRelaxation`; no Trainer anywhere. A loop
makes four calls: `attach` before the optimizer is made (the strategy may bring weights), `update` before every batch,
`finish` at the end, `detach` after an exception.

    python examples/without_a_trainer.py

Prints a table and writes it: without_a_trainer.csv, .md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import torch
from torch import Tensor

from lightning_equiv import (
    ConstraintRelaxation,
    Invariant,
    RegressionModule,
    Symmetry,
    SymmetryCallback,
    equivariance_error,
)
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing

SYMMETRY = Symmetry("O(3)", inputs={"charges": Invariant(), "positions": "1o", "velocities": "1o"}, outputs="1o")


def train(
    module: RegressionModule, data: ChargedDataModule, strategy: SymmetryCallback | None, steps: int
) -> list[float]:
    """Equivariance error of the network at every tenth of the training, and at its end."""
    errors = []
    validation = next(iter(data.val_dataloader()))
    args, kwargs = module.arguments(validation)
    if strategy is not None:
        strategy.attach(module)
    try:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
        for step, batch in enumerate(itertools.islice(batches, steps)):
            if strategy is not None:
                strategy.update(step, steps)
            loss: Tensor = module.training_step(batch, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % max(steps // 10, 1) == 0 or step == steps - 1:
                error = equivariance_error(module.net, args, SYMMETRY, kwargs=kwargs, num_samples=1)
                errors.append(float(error.mean()))
        if strategy is not None:
            strategy.finish(module)
    finally:
        if strategy is not None:
            strategy.detach()
    return errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="where the table goes")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="a few steps of a tiny network, to see that it runs"
    )
    options = parser.parse_args(argv)
    small = options.fast_dev_run
    steps = 10 if small else options.steps
    data = ChargedDataModule(
        train_size=20 if small else 1000,
        val_size=100,
        test_size=1,
        batch_size=20 if small else 50,
        steps=20 if small else 1000,
    )
    rows = []
    for way in ("strict", "relaxed"):
        torch.manual_seed(0)
        module = RegressionModule(E3nnMessagePassing("8x0e+8x1o", 2), target="targets")
        strategy = ConstraintRelaxation("O(3)", "net.layers.*.update") if way == "relaxed" else None
        errors = train(module, data, strategy, steps)
        with torch.no_grad():
            mse = module.loss_of(next(iter(data.val_dataloader())))[0]
        rows.append([way, f"{1e3 * mse:.2f}", f"{max(errors):.2e}", f"{errors[-1]:.2e}"])
    header = ["training", "validation MSE x 1e-3", "largest equivariance error", "equivariance error at the end"]
    path = options.out / f"without_a_trainer{'_fast_dev_run' if small else ''}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    table = "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
    path.with_suffix(".md").write_text(f"`python examples/without_a_trainer.py`\n\n{table}\n")
    print(f"{table}\nwritten: {path}, .md")


if __name__ == "__main__":
    main()
