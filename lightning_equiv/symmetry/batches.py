"""The batches of what a user calls data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_equiv.symmetry.tree import children, is_graph

TEST_FIRST = ("test_dataloader", "val_dataloader", "predict_dataloader", "train_dataloader")
TRAINING_FIRST = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
_BATCH = 64  # of a data set, as it is collated by default


def batches_of(data: Any, loaders: Sequence[str] = TEST_FIRST) -> Iterable[Any]:
    """The batches of what a user calls data.

    A list is a batch where it holds tensors side by side, as a loader's default collation makes it, and else batches.

    Args:
        data: a batch, a list or loader of batches, a data set, or a LightningDataModule.
        loaders: of a data module, in the order in which they are looked for.

    Raises:
        ValueError: a data module without any of these loaders.
    """
    if isinstance(data, L.LightningDataModule):
        return _loaded(data, loaders)
    is_batch = isinstance(data, Tensor | tuple | Mapping) or is_graph(data) or children(data) is not None
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        items: Any = data
        return (items[i] for i in range(len(items))) if is_graph(items[0]) else DataLoader(items, batch_size=_BATCH)
    if isinstance(data, list):
        is_batch = any(isinstance(item, Tensor) for item in data)
    if is_batch or not isinstance(data, Iterable):
        return [data]
    return data


def _loaded(data: L.LightningDataModule, names: Sequence[str]) -> Iterable[Any]:
    """The batches of the first loader that a data module has, in this order."""
    data.prepare_data()
    for name in names:
        if getattr(type(data), name) is getattr(L.LightningDataModule, name):
            continue
        data.setup({"test": "test", "val": "validate", "predict": "predict", "train": "fit"}[name.partition("_")[0]])
        found = getattr(data, name)()
        if isinstance(found, Mapping):
            found = next(iter(found.values()))
        return found[0] if isinstance(found, list | tuple) else found
    raise ValueError(f"expected {type(data).__name__} to have one of {tuple(names)}")
