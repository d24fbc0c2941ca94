"""What the second pass of REMUL costs and brings: on part of the batch, every few steps, for a tolerance.

    python examples/benchmarks/remul_cost.py                    5 seeds, appended run by run to remul_cost.jsonl
    python examples/benchmarks/remul_cost.py --draw             only the tables, from what is there

The demo's problem: gravitating bodies that are turned by at most 10 degrees in training, by the demo's Transformer at
its quick size. Every way runs for the same number of steps; the default's candidates run for the seconds of the whole
second pass, too. Step times are measured side by side, in turns, before anything is trained. One thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import lightning as L
import torch
from torch import Tensor

from lightning_equiv import REMUL, EquivarianceError, Invariant, Symmetry
from lightning_equiv.datasets import GravityDataModule
from lightning_equiv.networks.transformer import ParticleTransformer

INPUTS = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}
SYMMETRY = Symmetry("SO(3)", inputs=INPUTS, outputs="1o")
WEIGHT = 10.0

Way = Callable[[], list[REMUL]]


def labelled(**settings: Any) -> Way:
    return lambda: [REMUL(SYMMETRY, network="net", weight=WEIGHT, target="targets", **settings)]


def to_tolerance(tolerance: float, **settings: Any) -> Way:
    return lambda: [REMUL(SYMMETRY, network="net", balance="dual", tolerance=tolerance, **settings)]


WAYS: dict[str, Way] = {
    "plain": list,
    "fraction 1": labelled(),
    "fraction 1/2": labelled(fraction=0.5),
    "fraction 1/4": labelled(fraction=0.25),
    "fraction 1/8": labelled(fraction=0.125),
    "every 2": labelled(every=2),
    "every 4": labelled(every=4),
    "own prediction": lambda: [REMUL(SYMMETRY, network="net", weight=WEIGHT)],
    "own prediction, near 0.1": lambda: [REMUL(SYMMETRY, network="net", weight=WEIGHT, elements="near", angle=0.1)],
    "tolerance 0.02": to_tolerance(0.02, fraction=0.25),
    "tolerance 0.05": to_tolerance(0.05, fraction=0.25),
    "tolerance 0.1": to_tolerance(0.1, fraction=0.25),
    "tolerance 0.2": to_tolerance(0.2, fraction=0.25),
}
FULL = (4, 128)  # blocks and channels of the demo's full size
EQUAL_SECONDS = ("fraction 1/4", "every 4")


class Gravity(L.LightningModule):
    """The demo's network and optimiser."""

    def __init__(self, steps: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.net = ParticleTransformer(num_blocks=blocks, num_channels=channels, num_heads=4)
        self.steps = steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.mse_loss(self.net(**{k: batch[k] for k in INPUTS}), batch["targets"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def trained(way: Way, steps: int, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Mean squared errors in and out of distribution, the equivariance error, and seconds of training."""
    L.seed_everything(seed, verbose=False)
    data = GravityDataModule(train_size=100, val_size=args.size, test_size=args.size, steps_per_epoch=100, seed=seed)
    model = Gravity(steps, args.blocks, args.channels)
    trainer = L.Trainer(
        max_steps=steps, callbacks=way(), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=10.0, limit_val_batches=0, accelerator="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(model, data)
    seconds = time.perf_counter() - start
    data.setup("test")
    found = {"seconds": seconds}
    model.eval()
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        metric, errors = EquivarianceError(SYMMETRY, num_samples=8), []
        for batch in loader:
            inputs = {k: batch[k] for k in INPUTS}
            with torch.no_grad():
                errors.append((model.net(**inputs) - batch["targets"]).square().flatten())
            metric.update(model.net, **inputs)
        found |= {f"mse_{name}": float(torch.cat(errors).mean()), f"error_{name}": float(metric.compute())}
    return found


def step_costs(blocks: int, channels: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a training step of each way, relative to a plain one; they take turns."""
    data = GravityDataModule(train_size=100, val_size=8, test_size=8)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    steps: dict[str, Callable[[], None]] = {}
    for name, way in WAYS.items():
        torch.manual_seed(0)
        model = Gravity(1, blocks, channels)
        callbacks = way()
        for callback in callbacks:
            callback.attach(model)
        optimizer = torch.optim.Adam(model.parameters())

        def step(model=model, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()

        steps[name] = step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 4):
        for name, step in steps.items():
            start = time.thread_time()
            for _ in range(4):  # whole periods of "every"
                step()
            if turn >= 4:
                times[name].append(time.thread_time() - start)
    median = {name: statistics.median(seen) for name, seen in times.items()}
    return {name: seconds / median["plain"] for name, seconds in median.items()}


def table(rows: list[dict[str, Any]], costs: dict[str, float]) -> str:
    """Means over the seeds, with their standard errors."""

    def cell(runs: list[dict[str, Any]], key: str, scale: float, digits: int) -> str:
        values = [scale * run[key] for run in runs]
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

    lines = [
        "| way | plain steps a step | steps | MSE ID × 1e-3 | MSE OOD × 1e-3 | relative error ID |",
        "|---|---|---|---|---|---|",
    ]
    for way, steps in dict.fromkeys((row["way"], row["steps"]) for row in rows):
        runs = [row for row in rows if (row["way"], row["steps"]) == (way, steps)]
        cells = [cell(runs, "mse_id", 1e3, 2), cell(runs, "mse_ood", 1e3, 2), cell(runs, "error_id", 1, 4)]
        lines.append(f"| {way} | {costs[way]:.2f} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(costs: dict[str, dict[str, float]]) -> str:
    """Plain steps a step, by way and size of the network."""
    lines = ["| way | " + " | ".join(costs) + " |", "|---" * (len(costs) + 1) + "|"]
    return "\n".join([*lines, *(f"| {way} | {' | '.join(f'{c[way]:.2f}' for c in costs.values())} |" for way in WAYS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=1000, help="inputs of each test set")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--draw", action="store_true", help="only the tables")
    parser.add_argument("--fast-dev-run", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    if args.fast_dev_run:
        args.seeds, args.steps, args.blocks, args.channels, args.size, args.rounds = 1, 4, 1, 16, 16, 1
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    log, cost_file = args.output / "remul_cost.jsonl", args.output / "remul_cost.json"
    if not cost_file.exists():
        sizes = [(args.blocks, args.channels), *([] if args.fast_dev_run else [FULL])]
        measured = {f"{b} blocks of {c} channels": step_costs(b, c, args.rounds) for b, c in sizes}
        cost_file.write_text(json.dumps(measured, indent=1) + "\n")
    all_costs = json.loads(cost_file.read_text())
    costs = next(iter(all_costs.values()))
    (args.output / "remul_step_cost.md").write_text(cost_table(all_costs) + "\n")
    plan = [(way, args.steps) for way in args.ways]
    longer = {way: round(args.steps * costs["fraction 1"] / costs[way]) for way in EQUAL_SECONDS}
    plan += [(way, steps) for way, steps in longer.items() if way in args.ways]
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["way"], row["steps"], row["seed"]) for row in rows}
    for seed in range(0 if args.draw else args.seeds):
        for way, steps in plan:
            if (way, steps, seed) not in done:
                row = {"way": way, "steps": steps, "seed": seed, **trained(WAYS[way], steps, seed, args)}
                rows.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    written = table(rows, costs)
    (args.output / "remul_cost.md").write_text(written + "\n")
    with (args.output / "remul_cost.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{written}\nwritten: {args.output / 'remul_cost'}.jsonl, .json, .csv, .md")
    print(f"written: {args.output / 'remul_step_cost.md'}")


if __name__ == "__main__":
    main()
