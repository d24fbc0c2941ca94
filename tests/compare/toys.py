"""A foreign module and data that draw from the global generators wherever people do, and know of no seed."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, random_split

from lightning_equiv import Symmetry
from lightning_equiv.compare.run import compare
from tests.helpers import global_seed, normal

SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", "1o"))


def draw(source: str) -> Tensor:
    if source == "torch":
        return torch.rand(3)
    if source == "numpy":
        return torch.tensor(np.random.rand(3), dtype=torch.float32)  # noqa: NPY002 (what people do)
    return torch.tensor([random.random() for _ in range(3)])


class Noisy(Dataset):
    """(x, |x| x and a push along z); each x with noise that is drawn anew when it is asked for."""

    def __init__(self, size: int, source: str) -> None:
        self.x, self.source = normal(size, 3, dtype=torch.float32), source
        self.y = self.x * self.x.norm(dim=-1, keepdim=True) + torch.tensor([0, 0, 0.3])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * draw(self.source), self.y[i]


class Data(L.LightningDataModule):
    """Splits and shuffles without a generator."""

    def __init__(self, size: int = 48, batch_size: int = 8, source: str = "torch", tests: str = "one") -> None:
        super().__init__()
        self.size, self.batch_size, self.source, self.tests = size, batch_size, source, tests

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = random_split(Noisy(self.size + 32, self.source), [self.size, 16, 16])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 16)

    def test_dataloader(self) -> Any:
        loaders = [DataLoader(self.test, 16), DataLoader(self.test, 8)]
        kinds = {"list": loaders, "dict": {"near": loaders[0], "far": loaders[1]}, "one": loaders[0]}
        return CombinedLoader(kinds["dict"], "sequential") if self.tests == "combined" else kinds[self.tests]


class Net(L.LightningModule):
    """A user's regression; `fault` is what goes wrong, at step `at`."""

    def __init__(
        self,
        lr: float = 0.01,
        width: int = 8,
        dropout: float = 0.0,
        draws: bool = False,
        fault: str = "",
        at: int = 3,
        schedule: str = "",
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3))
        self.lr, self.draws, self.fault, self.at, self.schedule = lr, draws, fault, at, schedule
        if fault == "constructor":
            raise TypeError("no such constructor")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.draws:  # what a way draws, in an amount of its own
            x = x + 0.01 * (draw("torch") + draw("numpy") + draw("python"))
        if self.fault == "raises" and self.global_step == self.at:
            raise ArithmeticError(f"broken at step {self.global_step}")
        loss = nn.functional.mse_loss(self.net(x), y)
        if self.fault == "nan" and self.global_step == self.at:
            loss = loss * torch.nan
        return loss if self.fault != "worse" or self.global_step < self.at else -loss

    def on_train_epoch_end(self) -> None:
        if self.draws:
            draw("torch")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log_dict({"val_loss": loss, "val_score": -loss})

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("test_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=self.lr)
        if self.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=0, threshold=0.5)
            return {"optimizer": adam, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.schedule == "step":
            return [adam], [torch.optim.lr_scheduler.StepLR(adam, 1, 0.5)]
        return adam


class Scaled(nn.Module):
    """x times a function of its length: equivariant."""

    in_shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale[0] + self.scale[1] * x.norm(dim=-1, keepdim=True))


def teacher(seed: int = 0) -> nn.Module:
    """Another one of each seed."""
    with global_seed(seed):
        return Scaled()


class Raises(L.Callback):
    """A callback that fails."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            raise OSError("no space left")


def run(results: Any, model: Any = Net, data: Any = Data, **settings: Any) -> list[dict[str, Any]]:
    """The records of a small comparison."""
    few = {"ways": ["plain"], "seeds": 1, "steps": 12, "symmetry": SYMMETRY, "network": "net", "target": 1}
    quick = {"draws": 2, "num_inputs": 4, "threads": 1, "progress": False, "trainer": {"accelerator": "cpu"}}
    settings["trainer"] = {**quick.pop("trainer"), **settings.pop("trainer", {})}
    return compare(model, data, **{**few, **quick, "results": results, **settings}).records


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What must come out the same, bit for bit."""
    same = ("case", "way", "seed", "trial", "status", "steps", "metrics", "equivariance_error", "profile", "batches")
    curve = {name: [[step, value] for step, _, value in points] for name, points in record["curve"].items()}
    return {**{key: record[key] for key in same}, "curve": curve}


def table(records: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Key -> what must come out the same."""
    runs = [r for r in records if r["kind"] != "cost"]
    found = {(r["case"], r["way"], r["seed"], r["trial"]): numbers(r) for r in runs}
    assert len(found) == len(runs)
    return found
