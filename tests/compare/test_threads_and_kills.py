"""Runs in threads of one process, which share its global generators; runs that are killed and go on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import Comparison, compare
from lightning_equiv.compare.records import read


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


class Killed(BaseException):
    pass


class Killer(L.Callback):
    at: int | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == Killer.at:
            raise Killed


@pytest.mark.parametrize(
    "validation",
    [{"check_val_every_n_epoch": 1}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 2}],  # epochs of 5 batches
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, int]
) -> None:
    settings = {"steps": 32, "seeds": 1, "ways": {"own": [Killer()]}, "progress": False, "save_every": 0.0}
    trainer = {"accelerator": "cpu", **validation}
    whole = compare(Module, Data, results=tmp_path / "whole.jsonl", trainer=trainer, **settings)
    for at in (18, 23, 27):  # in different epochs of five batches
        file = tmp_path / f"{at}.jsonl"
        monkeypatch.setattr(Killer, "at", at)
        with pytest.raises(Killed):
            compare(Module, Data, results=file, trainer=trainer, **settings)
        assert read(file) == []
        assert any(tmp_path.glob(f"{file.name}.runs/*/last.ckpt"))
        monkeypatch.setattr(Killer, "at", None)
        again = compare(Module, Data, results=file, trainer=trainer, **settings)
        for key in ("metrics", "batches", "steps"):
            assert again.runs[0][key] == whole.runs[0][key]
