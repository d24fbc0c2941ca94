"""An equivariant network that was trained on the data, as a teacher for symmetry cloning."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from filelock import FileLock
from torch import nn

from lightning_equiv.datasets import InMemoryDataModule


def trained(task: L.LightningModule, data: InMemoryDataModule, steps: int, cache: str, *, seed: int) -> nn.Module:
    """The task's network `net` after training; made once for a seed.

    Args:
        task: the training.
        data: its data; they are drawn from the run's seed.
        steps: optimizer steps.
        cache: file that keeps the weights, but for the seed and the ending.
        seed: of the data.
    """
    net = task.get_submodule("net")
    path = Path(f"{cache}_{seed}.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            data.seed = seed
            trainer = L.Trainer(
                max_steps=steps,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                limit_val_batches=0,
                gradient_clip_val=10.0,
            )
            trainer.fit(task, datamodule=data)
            torch.save(net.state_dict(), path)
        net.load_state_dict(torch.load(path))
    return net.eval()
