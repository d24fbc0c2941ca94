"""Charged particles: a trained equivariant network teaches a plain Transformer.

The e3nn network is trained first. Then a Transformer of ordinary layers takes over its behaviour on the training
inputs, turned at random, and is trained on the labels; beside it the same Transformer without a teacher, and with
augmentation.

    python examples/nbody_symmetry_cloning.py --preset quick    one seed, a short run
    python examples/nbody_symmetry_cloning.py --preset full     three seeds

Prints a table of test errors and equivariance errors and writes it as nbody_symmetry_cloning_PRESET.csv and .md.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from nbody_constraint_relaxation import Charges
from networks.e3nn_message_passing import E3nnMessagePassing
from networks.transformer import ParticleTransformer
from shared.comparison import arguments, quiet, spread, write_table
from torch import Tensor, nn

from lightning_equiv import GroupAugmentation, Invariant, Symmetry, SymmetryCloning, equivariance_error
from lightning_equiv.datasets import ChargedDataModule

BATCH = {"charges": Invariant(), "positions": "1o", "velocities": "1o", "targets": "1o"}
SYMMETRY = Symmetry("O(3)", inputs=(Invariant(), "1o", "1o"), outputs="1o", batch=BATCH)
INPUTS = ["charges", "positions", "velocities"]


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    seeds: int
    steps: int
    cloning_steps: int
    tolerance: float
    size: int = 1000
    eval_size: int = 1000
    horizon: int = 1000
    channels: int = 64
    blocks: int = 3


PRESETS = {
    "quick": Preset(seeds=1, steps=500, cloning_steps=1500, tolerance=0.6),
    "full": Preset(seeds=3, steps=1500, cloning_steps=8000, tolerance=0.35),
}
FAST_DEV_RUN = Preset(
    seeds=1, steps=2, cloning_steps=2, tolerance=9.0, size=8, eval_size=8, horizon=10, channels=8, blocks=1
)


def train(
    net: nn.Module, data: ChargedDataModule, callbacks: Sequence[L.Callback], steps: int, lr: float, progress: bool
) -> list[float]:
    """Test MSE x 1e-3 and relative equivariance error after training."""
    module = Charges(net, lr, steps)
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    batch: dict[str, Tensor] = next(iter(data.val_dataloader()))
    args = tuple(batch[key] for key in INPUTS)
    error = equivariance_error(net, args, SYMMETRY, num_samples=4).square().mean().sqrt()
    return [1e3 * tested["test_mse"], float(error)]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, sorted(PRESETS)).parse_args(argv)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]
    quiet()
    torch.set_num_threads(options.threads)
    results: dict[str, list[list[float]]] = {}
    folder = tempfile.TemporaryDirectory()  # one clone a seed, used three times
    for seed in range(options.seeds or preset.seeds):
        L.seed_everything(seed, verbose=False)
        data = ChargedDataModule(
            train_size=preset.size,
            val_size=preset.eval_size,
            test_size=preset.eval_size,
            batch_size=min(50, preset.size),
            eval_batch_size=preset.eval_size,
            steps=preset.horizon,
        )
        run = partial(train, data=data, steps=preset.steps, progress=options.progress)
        plain = partial(ParticleTransformer, preset.blocks, preset.channels, 4)
        teacher = E3nnMessagePassing("16x0e+16x1o", 3)
        measured = {"e3nn network, the teacher": run(teacher, callbacks=[], lr=1e-2)}
        measured["Transformer"] = run(plain(), callbacks=[], lr=1e-3)
        measured["Transformer, augmentation"] = run(plain(), callbacks=[GroupAugmentation(SYMMETRY)], lr=1e-3)
        cloning = partial(
            SymmetryCloning,
            teacher,
            "net",
            symmetry=SYMMETRY,
            inputs=INPUTS,
            steps=preset.cloning_steps,
            tolerance=preset.tolerance,
            cache=Path(folder.name) / f"{seed}.pt",
        )
        measured["Transformer, cloned, then trained"] = run(plain(), callbacks=[cloning()], lr=3e-4)
        kept = cloning(weight=10.0)
        measured["Transformer, cloned, then held (weight 10)"] = run(plain(), callbacks=[kept], lr=3e-4)
        both = [GroupAugmentation(SYMMETRY), cloning()]
        measured["Transformer, cloned, then augmentation"] = run(plain(), callbacks=both, lr=3e-4)
        for name, values in measured.items():
            results.setdefault(name, []).append(values)
            print(f"{name}, seed {seed}: MSE x1e-3 {values[0]:.2f}, equivariance error {values[1]:.3f}", flush=True)
        print(f"clone, seed {seed}: {kept.report}", flush=True)

    rows = [["network", "seeds", "test MSE x1e-3", "relative equivariance error"]]
    for name, runs in results.items():
        mse, error = (list(column) for column in zip(*runs, strict=True))
        rows.append([name, str(len(runs)), spread(mse), f"{statistics.mean(error):.1e}"])
    path = options.out / f"nbody_symmetry_cloning_{'fast_dev_run' if options.fast_dev_run else options.preset}"
    said = "--fast-dev-run" if options.fast_dev_run else f"--preset {options.preset}"
    write_table(rows, path, f"python examples/nbody_symmetry_cloning.py {said}")
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
