"""Data modules whose draws are a function of the seed alone."""

from __future__ import annotations

import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from lightning_equiv.compare.seeded import BatchHash, Overlap, SeededLoader, seed_all, seed_data
from tests.compare.toys import Data, Net, run


class Shown(L.Callback):
    """Keeps the first numbers of each training batch."""

    def __init__(self, batches):
        self.batches = batches

    def __deepcopy__(self, memo):
        return Shown(self.batches)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[1].tolist())


def test_the_order_changes_from_epoch_to_epoch(tmp_path):
    batches = []
    run(tmp_path / "r.jsonl", ways={"plain": [Shown(batches)]}, steps=18)
    epochs = [[row for batch in batches[i : i + 6] for row in batch] for i in (0, 6, 12)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])  # of the same split
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


class Sampler(torch.utils.data.Sampler):
    """Its order is a function of the epoch that Lightning tells it."""

    def __init__(self, size):
        self.size, self.epochs = size, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epochs[-1])).tolist())

    def __len__(self):
        return self.size


class Sampled(Data):
    samplers = []  # noqa: RUF012 (the test's)

    def train_dataloader(self):
        self.samplers.append(Sampler(len(self.train)))
        return DataLoader(self.train, self.batch_size, sampler=self.samplers[-1])


def test_samplers_are_told_the_epoch(tmp_path):
    batches = []
    (record,) = run(tmp_path / "r.jsonl", data=Sampled, ways={"plain": [Shown(batches)]}, steps=18)
    assert record["status"] == "ok", record["message"]
    assert sorted(set(Sampled.samplers[-1].epochs)) == [0, 1, 2]
    assert batches[0] != batches[6] != batches[12]


class Combined(Data):
    def train_dataloader(self):
        loaders = [DataLoader(self.train, 8, shuffle=True), DataLoader(self.val, 4, shuffle=True)]
        return CombinedLoader(loaders, "max_size_cycle") if self.source == "torch" else loaders


class OfTwo(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx) + super().training_step(batch[1], batch_idx)


@pytest.mark.parametrize("source", ["torch", "numpy"])
def test_several_training_loaders(tmp_path, source):
    data = {"class_path": "tests.compare.test_seeded.Combined", "init_args": {"source": source}}
    ways = {"plain": [], "drawing": {"settings": {"draws": True, "dropout": 0.1}}}
    records = run(tmp_path / "r.jsonl", OfTwo, data, ways=ways)
    assert [r["status"] for r in records] == ["ok", "ok"], records[0]["message"]
    assert records[0]["batches"] == records[1]["batches"]
    assert list(records[0]["batches"])[-1] == "24"


def test_graphs_of_pyg():
    geometric = pytest.importorskip("torch_geometric")
    graphs = [
        geometric.data.Data(x=torch.full((n, 2), float(n)), edge_index=torch.tensor([[0, 1], [1, 0]]))
        for n in range(2, 22)
    ]

    class Graphs(L.LightningDataModule):
        def train_dataloader(self):
            return geometric.loader.DataLoader(graphs, 4, shuffle=True)

    def hashes(seed, disturbed):
        batches, data = BatchHash(), Graphs()
        seed_data(data, seed, batches.update)
        for _ in data.train_dataloader():
            torch.rand(disturbed)
        return batches.all()

    assert hashes(0, 1) == hashes(0, 5) != hashes(1, 1)
    assert list(hashes(0, 1)) == ["1", "2", "4", "5"]


class Drawn(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002


def drawn(loader):
    return [batch.tolist() for batch in loader]


def test_draws_of_a_loader_are_of_the_epoch_and_leave_the_others_alone():
    epoch = [0]
    loader = SeededLoader(DataLoader(Drawn(), 2, shuffle=True), "key", lambda: epoch[0], lambda batch: None)
    seed_all("outside")
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    seed_all("outside")
    first = drawn(loader)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002
    assert drawn(loader) == first
    epoch[0] = 1
    assert drawn(loader) != first


def test_the_hash_sees_numbers_names_shapes_and_dtypes():
    batches = [
        {"a": torch.arange(4)},
        {"b": torch.arange(4)},
        {"a": torch.arange(4).reshape(2, 2)},
        {"a": torch.arange(4).int()},
        {"a": torch.tensor([0, 1, 2, 4])},
        {"a": torch.tensor([True, False])},
        {"a": torch.tensor(3.0, dtype=torch.bfloat16)},
        {"a": torch.zeros(0)},
        {"a": torch.tensor([1j])},
    ]

    def of(batch):
        batches = BatchHash()
        batches.update(batch)
        return batches.digest

    assert len({of(batch) for batch in batches}) == len(batches)
    assert of(batches[0]) == of({"a": torch.arange(4)})


def test_the_hash_is_of_the_order_too():
    def of(*numbers):
        batches = BatchHash()
        for number in numbers:
            batches.update(torch.tensor(number))
        return batches.all()

    assert of(1, 2, 3)["3"] != of(2, 1, 3)["3"]
    assert of(1, 2, 3)["2"] == of(1, 2, 4)["2"]


class Resplit(L.LightningDataModule):
    """Splits anew in every stage, without a generator; or draws the sets of a stage there."""

    def __init__(self, drawn: bool = False) -> None:
        super().__init__()
        self.drawn = drawn
        self.rows = torch.arange(40.0)[:, None].expand(40, 3) + torch.tensor([0.0, 0.5, 0.25])

    def setup(self, stage: str) -> None:
        x = torch.randn(40, 3) if self.drawn else self.rows
        self.train, self.test = torch.utils.data.random_split(torch.utils.data.TensorDataset(x, x[:, :1]), [30, 10])

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train, 5, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.train, 5)

    def test_dataloader(self):
        return torch.utils.data.DataLoader(self.test, 5)


@pytest.mark.parametrize("drawn", [False, True])
def test_test_inputs_that_were_trained_on_are_counted(drawn):
    data, overlap = Resplit(drawn), Overlap()
    trained, tested = [], []
    seed_data(
        data, 0, lambda b: (overlap.train(b), trained.append(b[0])), lambda b: (overlap.test(b), tested.append(b[0]))
    )
    for stage, loader in (("fit", "train_dataloader"), ("test", "test_dataloader")):
        data.setup(stage)
        list(getattr(data, loader)())
    held = {tuple(row) for row in torch.cat(trained).tolist()}
    assert overlap.share == sum(tuple(row) in held for row in torch.cat(tested).tolist()) / 10
    assert (overlap.share == 0) == drawn  # other numbers in another stage; a new split leaks


def test_validation_has_the_split_of_training():
    data = Resplit()
    seed_data(data, 0, lambda b: None)
    data.setup("fit")
    train = list(data.train.indices)
    data.setup("validate")
    assert data.train.indices == train
