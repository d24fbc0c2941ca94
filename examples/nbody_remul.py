"""An ordinary Transformer made nearly equivariant by one callback, on the gravitational N-body problem.

The same network is trained four ways by the ordinary Trainer: as it is, with augmentation, with REMUL on the labels,
and with REMUL for a relative equivariance error of at most 5 %, which asks for no label and no weight. The
training bodies are turned by at most 10 degrees; the test asks for the same (ID) and for 90 to 180 degrees (OOD).

    python examples/nbody_remul.py --preset quick        a few minutes on two cores
    python examples/nbody_remul.py --preset full         the 8,000-step setting
    python examples/nbody_remul.py --preset paper        10 blocks x 384 channels, 50,000 steps: for a GPU
    python examples/nbody_remul.py --preset full --peer  and an SE(3)-Transformer (pip install se3-transformer-pytorch)

Prints one table and writes it beside one picture: nbody_remul_PRESET.csv, .md, .png.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from networks.transformer import ParticleTransformer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_equiv import (
    REMUL,
    EquivarianceError,
    EquivarianceMonitor,
    GroupAugmentation,
    Invariant,
    Symmetry,
    SymmetryCallback,
)
from lightning_equiv.datasets.nbody import GravityDataModule, gravity_dataset

TOLERANCE = 0.05  # of the relative equivariance error, where it is REMUL's only setting
CHANCE = 180  # degrees: the far end of the picture


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    blocks: int
    channels: int
    heads: int
    steps: int
    eval_every: int
    weight: float
    peer_steps: int
    eval_size: int = 5000
    train_size: int = 100
    batch_size: int = 64


PRESETS = {
    "quick": Preset(
        blocks=3, channels=64, heads=4, steps=3000, eval_every=250, weight=10.0, peer_steps=200, eval_size=2000
    ),
    "full": Preset(blocks=4, channels=128, heads=8, steps=8000, eval_every=400, weight=10.0, peer_steps=600),
    "paper": Preset(blocks=10, channels=384, heads=8, steps=50_000, eval_every=1000, weight=10.0, peer_steps=50_000),
}
FAST_DEV_RUN = Preset(blocks=1, channels=16, heads=2, steps=4, eval_every=2, weight=10.0, peer_steps=2, eval_size=32)

SYMMETRY = Symmetry(
    "SO(3)",
    inputs={"masses": Invariant(), "positions": "1o", "velocities": "1o"},
    outputs="1o",
    batch={"masses": Invariant(), "positions": "1o", "velocities": "1o", "targets": "1o"},
)


class NBody(L.LightningModule):
    """The training that a user has already: nothing in it knows of a symmetry."""

    def __init__(self, net: nn.Module, steps: int, lr: float = 3e-4) -> None:
        super().__init__()
        self.net, self.steps, self.lr = net, steps, lr

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the final positions."""
        prediction = self.net(batch["masses"], batch["positions"], batch["velocities"])
        return nn.functional.mse_loss(prediction, batch["targets"])

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The task loss."""
        loss = self.loss(batch)
        self.log("train_mse", loss, prog_bar=True, batch_size=len(batch["masses"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Error in distribution."""
        self.log("val_mse", self.loss(batch), prog_bar=True, batch_size=len(batch["masses"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Error in and out of distribution."""
        name = GravityDataModule.test_names[dataloader_idx]
        self.log(f"test_mse_{name}", self.loss(batch), add_dataloader_idx=False, batch_size=len(batch["masses"]))

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam; the rate decays to a hundredth over the run."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Curve(L.Callback):
    """Remembers what was validated, and when."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """(step, validation MSE, equivariance error)."""
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics
            self.points.append((trainer.global_step, float(logged["val_mse"]), float(logged["equivariance_error"])))


@dataclass
class Result:
    """What one way of training came to."""

    name: str
    steps: int
    mse_id: float
    mse_ood: float
    equivariance_error: float
    train_seconds: float
    curve: list[tuple[int, float, float]]
    by_angle: list[float]
    module: NBody
    strategy: SymmetryCallback | None
    ms_per_step: float = float("nan")
    ms_per_inference: float = float("nan")


def train(
    name: str, net: nn.Module, strategy: SymmetryCallback | None, preset: Preset, options: argparse.Namespace
) -> Result:
    """Train and test one network; the strategy is one more callback."""
    data = GravityDataModule(
        train_size=preset.train_size,
        val_size=preset.eval_size,
        test_size=preset.eval_size,
        batch_size=preset.batch_size,
        steps_per_epoch=preset.eval_every,
        seed=options.seed,
    )
    curve = Curve()
    callbacks: list[L.Callback] = [EquivarianceMonitor(SYMMETRY, "net", num_samples=4, num_batches=1), curve]
    if strategy is not None:
        callbacks.append(strategy)
    if options.progress:
        callbacks.append(L.pytorch.callbacks.RichProgressBar(leave=False))
    trainer = L.Trainer(
        max_steps=preset.steps,
        gradient_clip_val=10.0,
        callbacks=callbacks,
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=options.progress,
    )
    module = NBody(net, preset.steps)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    trainer.test(module, datamodule=data, verbose=False)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return Result(
        name=name,
        steps=preset.steps,
        mse_id=logged["test_mse_id"],
        mse_ood=logged["test_mse_ood"],
        equivariance_error=measure(module.net, data.samples("ood")),
        train_seconds=seconds,
        curve=curve.points,
        by_angle=[error_at(module.net, angle, preset.eval_size, options.seed) for angle in ANGLES],
        module=module,
        strategy=strategy,
    )


ANGLES = list(range(0, CHANCE + 1, 15))


def measure(net: nn.Module, samples: dict[str, Tensor]) -> float:
    """Relative equivariance error of up to 1000 samples, 8 rotations each."""
    metric = EquivarianceError(SYMMETRY, num_samples=8)
    metric.update(net, **{key: value[:1000] for key, value in samples.items() if key != "targets"})
    return float(metric.compute())


@torch.no_grad()
def error_at(net: nn.Module, angle: float, size: int, seed: int) -> float:
    """Test MSE on bodies turned by exactly this angle; the same bodies for every angle."""
    samples = gravity_dataset(size, angles=(angle, angle), seed=seed + 1_000_003)
    targets = samples.pop("targets")
    return float(nn.functional.mse_loss(net.eval()(**samples), targets))


def time_side_by_side(results: list[Result], preset: Preset, rounds: int, seed: int) -> None:
    """Milliseconds of a training step and of an inference batch; the ways take turns on one machine."""
    samples = gravity_dataset(preset.batch_size, seed=seed)
    inputs = {key: value for key, value in samples.items() if key != "targets"}
    steps, inferences = [training_step_of(result) for result in results], [result.module.net for result in results]
    step_times: list[list[float]] = [[] for _ in results]
    inference_times: list[list[float]] = [[] for _ in results]
    for _ in range(rounds):
        for i, result in enumerate(results):
            result.module.train()
            step_times[i].append(seconds(lambda i=i: steps[i](samples)))
            result.module.eval()
            with torch.inference_mode():
                inference_times[i].append(seconds(lambda i=i: inferences[i](**inputs)))
    for i, result in enumerate(results):
        if result.strategy is not None:
            result.strategy.detach()
        result.ms_per_step = 1e3 * float(torch.tensor(step_times[i]).median())
        result.ms_per_inference = 1e3 * float(torch.tensor(inference_times[i]).median())


def training_step_of(result: Result) -> Callable[[dict[str, Tensor]], None]:
    """One step of a hand-written loop with the strategy attached."""
    module = result.module.cpu()
    module._trainer = None  # a loop without a Trainer logs nothing
    if result.strategy is not None:
        result.strategy.attach(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0)

    def step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        module.training_step(batch).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()

    return step


def seconds(run: Callable[[], object]) -> float:
    """Wall time of the second of two runs."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


COLUMNS = (
    "training",
    "parameters",
    "steps",
    "test MSE x1e-3, ID",
    "test MSE x1e-3, OOD",
    "relative equivariance error",
    "ms per step",
    "x plain",
    "ms per inference",
    "training s",
)


def rows(results: list[Result]) -> list[list[str]]:
    """The table, a row for each way of training."""
    plain = results[0].ms_per_step
    return [
        [
            r.name,
            f"{sum(p.numel() for p in r.module.net.parameters()):,}",
            f"{r.steps:,}",
            f"{1e3 * r.mse_id:.2f}",
            f"{1e3 * r.mse_ood:.2f}",
            f"{r.equivariance_error:.2g}",
            f"{r.ms_per_step:.1f}",
            f"{r.ms_per_step / plain:.2f}",
            f"{r.ms_per_inference:.1f}",
            f"{r.train_seconds:.0f}",
        ]
        for r in results
    ]


def write_tables(results: list[Result], path: Path, command: str) -> None:
    """The table as CSV and as Markdown."""
    table = rows(results)
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *table])
    lines = [" | ".join(row) for row in (COLUMNS, ["---"] * len(COLUMNS), *table)]
    text = f"`{command}`\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    peer = next((r for r in results if r.name.startswith("SE(3)")), None)
    remul = next(r for r in results if r.name == "REMUL")
    if peer is not None:
        inference = peer.ms_per_inference / remul.ms_per_inference
        step = peer.ms_per_step / remul.ms_per_step
        text += (
            "\nThe SE(3)-equivariant peer beside the Transformer with REMUL, in one run: inference takes "
            f"{inference:.1f} times as long (the paper: up to 10), a training step {step:.1f} times as long, "
            "REMUL's second forward counted (the paper: up to 2.5).\n"
        )
    path.with_suffix(".md").write_text(text)


def draw(results: list[Result], path: Path) -> None:
    """Error against rotation angle, and the learning curves."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for result in results:
        left.plot(ANGLES, [1e3 * e for e in result.by_angle], marker="o", markersize=3, label=result.name)
        steps, mse, error = zip(*result.curve, strict=True)
        middle.plot(steps, [1e3 * m for m in mse])
        right.plot(steps, error)
    left.axvspan(0, 10, color="0.9", label="turned so in training")
    left.set(xlabel="angle by which the test bodies are turned / degrees", ylabel="test MSE x 1e-3", yscale="log")
    middle.set(xlabel="optimiser step", ylabel="validation MSE x 1e-3 (turned as in training)", yscale="log")
    right.set(xlabel="optimiser step", ylabel="relative equivariance error", yscale="log")
    for axes in (left, middle):  # less than two decades: plain numbers read better than powers
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(results) + 1, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def show(results: list[Result]) -> None:
    """The table on the terminal."""
    table = Table(title="Gravitational N-body: one Transformer, trained four ways")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows(results):
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 160).print(table)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train, test, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="quick")
    parser.add_argument("--peer", action="store_true", help="add an SE(3)-Transformer that nobody here wrote")
    parser.add_argument("--weight", type=float, help="REMUL's weight in place of the preset's")
    parser.add_argument("--steps", type=int, help="optimiser steps in place of the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; more than one slows tensors this small down"
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="a few steps of a tiny network, to see that it runs"
    )
    options = parser.parse_args(arguments)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]
    preset = replace(
        preset, weight=preset.weight if options.weight is None else options.weight, steps=options.steps or preset.steps
    )
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings(
        "ignore", ".*the `self.trainer` reference is not registered.*"
    )  # the timed loop has no Trainer

    to_tolerance = REMUL(
        SYMMETRY, network="net", balance="dual", tolerance=TOLERANCE, fraction=0.25, seed=options.seed
    )  # no label, no weight, a quarter of the batch
    ways: list[tuple[str, SymmetryCallback | None]] = [
        ("plain", None),
        ("augmentation", GroupAugmentation(SYMMETRY, seed=options.seed)),
        ("REMUL", REMUL(SYMMETRY, network="net", weight=preset.weight, target="targets", seed=options.seed)),
        (f"REMUL, {TOLERANCE:.0%}", to_tolerance),
    ]
    results = []
    for name, strategy in ways:
        L.seed_everything(options.seed, verbose=False)
        net = ParticleTransformer(preset.blocks, preset.channels, preset.heads)
        results.append(train(name, net, strategy, preset, options))
        print(f"{name}: {results[-1].train_seconds:.0f} s", flush=True)
    if options.peer:
        from networks.se3_peer import SE3TransformerPeer

        L.seed_everything(options.seed, verbose=False)
        peer_preset = replace(preset, steps=preset.peer_steps, eval_every=max(1, preset.peer_steps // 10))
        results.append(train("SE(3)-Transformer", SE3TransformerPeer(), None, peer_preset, options))
    time_side_by_side(results, preset, rounds=3 if options.fast_dev_run else 30, seed=options.seed)

    show(results)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"nbody_remul_{'fast_dev_run' if options.fast_dev_run else options.preset}.png"
    command = f"python examples/nbody_remul.py --preset {options.preset}{' --peer' if options.peer else ''}"
    write_tables(results, path, command)
    draw(results, path)
    print(f"table and picture: {path.with_suffix('.csv')}, {path.with_suffix('.md')}, {path}")
    return results


if __name__ == "__main__":
    main()
