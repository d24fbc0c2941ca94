"""Charged particles: a trained equivariant network teaches a plain Transformer, by SymmetryCloning.

The e3nn network is trained first, once for each seed. Then a Transformer of ordinary layers takes over its behaviour on
the training inputs, turned at random, and is trained on the labels: freely, held near the clone, or with augmentation.
Beside it the same Transformer without a teacher.

    python examples/nbody_symmetry_cloning.py                       one seed, some minutes
    python examples/nbody_symmetry_cloning.py --seeds 5 --jobs 2    what can be told apart
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import torch
from shared.command_line import arguments, show
from torch import nn

from lightning_equiv import GroupAugmentation, Invariant, Symmetry, Way, compare
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.tasks import Particles
from lightning_equiv.networks.transformer import ParticleTransformer

INPUTS = ["charges", "positions", "velocities"]
MOVED = {"charges": Invariant(), "positions": "1o", "velocities": "1o"}
SYMMETRY = Symmetry("O(3)", inputs=(Invariant(), "1o", "1o"), outputs="1o", batch={**MOVED, "targets": "1o"})
SIZES = {"train_size": 1000, "val_size": 500, "test_size": 1000, "batch_size": 50, "steps_per_epoch": 100}


def model(lr: float = 1e-3) -> Particles:
    """The training that a user has already."""
    return Particles(ParticleTransformer(num_blocks=3, num_channels=64, num_heads=4), lr)


def trained_teacher(seed: int, data: partial[ChargedDataModule], steps: int, path: Path) -> nn.Module:
    """The e3nn network, trained; from its file, where there is one."""
    file = Path(f"{path}_teacher_{steps}_steps_seed_{seed}.pt")
    torch.manual_seed(seed)
    module = Particles(E3nnMessagePassing("16x0e+16x1o", num_layers=3), lr=1e-2)
    if not file.exists():
        silent = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        own = data(seed=seed)
        epochs = -(-steps // len(own.train_dataloader()))  # so that the bar knows how many
        trainer = L.Trainer(max_steps=steps, max_epochs=epochs, accelerator="cpu", limit_val_batches=0, **silent)
        trainer.fit(module, datamodule=own)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.net.state_dict(), file)
        print(f"written: {file}")
    module.net.load_state_dict(torch.load(file))
    return module.net


if __name__ == "__main__":
    options = arguments(__doc__, steps=500)
    data = partial(ChargedDataModule, **{**SIZES, **options.sizes})
    teacher = partial(trained_teacher, data=data, steps=options.runs["steps"], path=options.path)
    for seed in range(options.seeds):
        teacher(seed)  # now, so that no two runs train it at a time
    cloning = {"inputs": INPUTS, "steps": 2 if options.fast_dev_run else 1500, "on_failure": "warn"}
    free = {"class_path": "SymmetryCloning", "init_args": cloning}
    held = {"class_path": "SymmetryCloning", "init_args": {**cloning, "weight": 10.0}}
    after = {"lr": 3e-4}  # slower, or what was taught is soon lost
    ways = {
        "plain": Way(),
        "augmentation": Way([GroupAugmentation(SYMMETRY)]),
        "cloned": Way([free], settings=after),
        "cloned, held": Way([held], settings=after),
        "cloned, augmentation": Way([GroupAugmentation(SYMMETRY), free], settings=after),
    }
    comparison = compare(
        model,
        data,
        ways=ways,
        symmetry=SYMMETRY,
        network="net",
        teacher=teacher,
        monitor="val_mse",
        trainer={"accelerator": "cpu"},
        title="Charged particles: a Transformer taught by an e3nn network",
        **options.runs,
    )
    show(comparison, options)
