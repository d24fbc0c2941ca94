"""Runs that an executor puts into threads of one process take turns: they share the global generators."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import Comparison, compare


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", self.training_step(batch))

    def test_step(self, batch: list[Tensor]) -> None:
        self.log("test_loss", self.training_step(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.rows = TensorDataset(torch.randn(20, 3))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.rows, batch_size=4, shuffle=True)

    val_dataloader = test_dataloader = train_dataloader


def figures(comparison: Comparison) -> dict[str, dict[int, float]]:
    return comparison.figures("", "test_loss")


def test_runs_in_threads_are_those_of_one_thread(tmp_path: Path) -> None:
    settings = {"steps": 10, "seeds": 4, "trainer": {"accelerator": "cpu"}, "progress": False}
    alone = compare(Module, Data, results=tmp_path / "alone.jsonl", **settings)
    with ThreadPoolExecutor(4) as threads:
        together = compare(Module, Data, results=tmp_path / "together.jsonl", executor=threads, **settings)
    assert together.failures == ()
    assert len(set(figures(alone)["plain"].values())) == 4
    assert figures(together) == figures(alone)
