"""A LightningDataModule over tensors in memory, with epochs as long as wanted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, SequentialSampler

from lightning_equiv._checks import check_number

Samples = dict[str, Tensor]


@dataclass(kw_only=True, eq=False, repr=False)
class InMemoryDataModule(L.LightningDataModule):
    """Loaders over samples held in memory; a subclass draws the samples of a split and names the test sets.

    A data module is its settings: subclasses are dataclasses, which give the sizes a default and add settings of their
    own. A batch is one indexing of the samples, not a collation of its rows.

    Args:
        train_size: number of training samples.
        val_size: number of validation samples.
        test_size: number of samples of each test set.
        batch_size: training batch, of each process.
        eval_batch_size: validation and test batch.
        steps_per_epoch: make an epoch this many batches long, going through the samples as often as that takes
            (each equally often, up to one); None is one pass, the last batch being what is left.
        seed: of the samples and of the order of batches. Without a Trainer call
            `loader.sampler.set_epoch(epoch)` for a new order.
        num_workers: processes that cut batches; 0 is the fastest.

    Raises:
        ValueError: a size is less than 1.
    """

    test_names: ClassVar[tuple[str, ...]]

    train_size: int
    val_size: int
    test_size: int
    batch_size: int
    eval_batch_size: int
    steps_per_epoch: int | None = None
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("train_size", "val_size", "test_size", "batch_size", "eval_batch_size"):
            check_number(name, getattr(self, name), least=1, whole=True)
        check_number("steps_per_epoch", self.steps_per_epoch, least=1, whole=True, optional=True)
        self._splits: dict[str, Samples] = {}

    @abstractmethod
    def _draw(self, split: str, seed: int) -> Samples:
        """The samples of one split: "train", "val" or one of `test_names`."""

    def _size(self, split: str) -> int:
        """The number of samples of a split."""
        return {"train": self.train_size, "val": self.val_size}.get(split, self.test_size)

    def samples(self, split: str) -> Samples:
        """All samples of a split, drawn on first use.

        Args:
            split: "train", "val" or one of `test_names`.

        Raises:
            ValueError: there is no such split.
        """
        splits = ("train", "val", *self.test_names)
        if split not in splits:
            raise ValueError(f"expected one of {splits}, got {split!r}")
        if split not in self._splits:
            # each split has its own seed
            seeds = torch.randint(2**31, (len(splits),), generator=torch.Generator().manual_seed(self.seed))
            self._splits[split] = self._draw(split, int(seeds[splits.index(split)]))
        return self._splits[split]

    def setup(self, stage: str) -> None:
        """Draw the samples that a stage needs: "fit", "validate", "test" or "predict"."""
        needed = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": self.test_names,
            "predict": self.test_names,
        }
        for split in needed.get(stage, ()):
            self.samples(split)

    def train_dataloader(self) -> DataLoader[Samples]:
        """Shuffled batches, their order a function of (seed, epoch) only."""
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        length = None if self.steps_per_epoch is None else self.steps_per_epoch * self.batch_size * world_size
        rows = _Rows(self.samples("train"), length)
        # Lightning calls `set_epoch` on this sampler and leaves it in place when several processes train
        sampler: DistributedSampler[Samples] = DistributedSampler(rows, world_size, rank, shuffle=True, seed=self.seed)
        return self._loader(rows, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Samples]:
        """The validation batches in order."""
        return self._loader(_Rows(self.samples("val")), self.eval_batch_size)

    def test_dataloader(self) -> list[DataLoader[Samples]]:
        """One loader for each of `test_names`."""
        return [self._loader(_Rows(self.samples(name)), self.eval_batch_size) for name in self.test_names]

    def predict_dataloader(self) -> list[DataLoader[Samples]]:
        """The test sets, one loader for each."""
        return self.test_dataloader()

    def _loader(
        self, rows: _Rows, batch_size: int, sampler: DistributedSampler[Samples] | None = None
    ) -> DataLoader[Samples]:
        # without a generator of its own a loader draws from the global one whenever it is iterated
        generator = torch.Generator().manual_seed(self.seed)
        return ResumableLoader(
            rows,
            batch_size=batch_size,  # by name: Lightning makes the loader again to predict, from its named arguments
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            generator=generator,
        )


class ResumableLoader(DataLoader[Samples]):
    """A loader that Lightning can restore in mid-epoch: the batches already seen are skipped."""

    _seen = 0
    _loaded: dict[str, Any] | None = None

    def __init__(
        self,
        dataset: Dataset[Samples],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        ordered = sampler is None and not shuffle and kwargs.get("batch_sampler") is None
        if type(sampler) is SequentialSampler or (ordered and not isinstance(dataset, IterableDataset)):
            # Lightning tells it the epoch: a part of the batches may be the middle of an epoch, or all of it
            sampler = _InOrder(dataset)  # type: ignore[arg-type]
        super().__init__(dataset, batch_size, shuffle, sampler, **kwargs)

    @property
    def _epoch(self) -> int | None:
        return getattr(self.sampler, "epoch", None)

    def __iter__(self) -> Iterator[Samples]:  # type: ignore[override]
        loaded, self._loaded = self._loaded, None
        # a state of another epoch was saved at its end
        skipped = loaded["seen"] if loaded is not None and loaded["epoch"] == self._epoch else 0
        for i, batch in enumerate(super().__iter__()):
            if i >= skipped:
                self._seen = i + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen % len(self), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state


class _InOrder(SequentialSampler):
    """The rows in their order, in every epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class _Rows(Dataset[Samples]):
    """Rows of tensors of equal length; a whole batch of rows is one indexing. A larger `length` repeats the rows."""

    def __init__(self, samples: Samples, length: int | None = None) -> None:
        self.samples = samples
        self.num_rows = len(next(iter(samples.values())))
        self.length = self.num_rows if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Samples:
        return {name: tensor[index % self.num_rows] for name, tensor in self.samples.items()}

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        # torch's loader calls this with the indices of a batch
        rows = torch.tensor(indices) % self.num_rows
        return {name: tensor[rows] for name, tensor in self.samples.items()}


def _unchanged(batch: object) -> object:
    """For `collate_fn`: a batch is indexed as a whole; a named function, which a worker can pickle."""
    return batch
