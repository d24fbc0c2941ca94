"""Read the training data before training begins, and leave the run's own loaders and random numbers alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader


def training_batches(trainer: L.Trainer, module: L.LightningModule) -> Iterator[Any]:
    """One pass over the training batches before training begins, on the module's device."""
    source = trainer.fit_loop._data_source.dataloader()  # not `setup_data`, a collective call that draws random numbers
    loaders = source if isinstance(source, CombinedLoader) else CombinedLoader(source)
    loaders = CombinedLoader(tree_map(_apart, loaders.iterables), "max_size_cycle")
    for batch, _, _ in loaders:
        yield trainer.strategy.batch_to_device(batch, module.device)


def _apart(loader: Any) -> Any:
    """A loader whose passes leave the other's workers and generators alone."""
    loader = copy.copy(loader)
    if isinstance(loader, DataLoader):
        loader._iterator = None
        held = [o for o in (loader, loader.sampler) if isinstance(getattr(o, "generator", None), torch.Generator)]
        if held:
            memo: dict[int, Any] = {id(loader.dataset): loader.dataset}
            copies = copy.deepcopy((loader.generator, loader.sampler, loader.batch_sampler), memo)
            for name, value in zip(("generator", "sampler", "batch_sampler"), copies, strict=True):
                loader.__dict__[name] = value
    return loader
