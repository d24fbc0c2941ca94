"""What stops a training: a warning where it is the equivariance error alone, and the error combined with the task."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import REMUL, EquivarianceMonitor, LieDerivativeError, Symmetry
from tests.helpers import global_seed, seeded
from tests.metrics.test_monitor import History, trainer

VECTORS = Symmetry("SO(3)", "1o", "1o")


def loader(size: int = 22) -> DataLoader:
    """Vectors to be stretched along z, in batches of which the last is ragged."""
    x = torch.randn(size, 3, generator=seeded(0))
    return DataLoader(TensorDataset(x, x * torch.tensor([1.0, 1.0, 3.0])), 4)


class Model(L.LightningModule):
    """Starts as a network that predicts next to nothing, and the same for all."""

    def __init__(self, name: str = "val_loss", late: bool = False) -> None:
        super().__init__()
        with global_seed():
            self.net = nn.Linear(3, 3, bias=False)
        self.name, self.late, self.losses = name, late, []
        nn.init.eye_(self.net.weight)  # equivariant, and wrong
        self.net.weight.data *= 0.1

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = self.training_step(batch, batch_idx)
        self.losses.append((float(loss), len(batch[0])))
        if not self.late:
            self.log(self.name, loss, batch_size=len(batch[0]))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.losses.clear()

    def on_validation_epoch_end(self) -> None:
        if self.late:
            self.log(self.name, 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Twin(L.Callback):
    """The combined figure again, from the losses of the steps and the error as it was logged."""

    def __init__(self, weight: float) -> None:
        self.weight, self.values, self.logged = weight, [], []

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = sum(n for _, n in pl_module.losses)
        task = sum(loss * n for loss, n in pl_module.losses) / rows
        self.values.append(task + self.weight * float(trainer.callback_metrics["equivariance_error"]))
        self.logged.append(float(trainer.callback_metrics["equivariance_error/combined"]))


@pytest.mark.parametrize("weight", [1.0, 0.25, -2.0])
def test_the_combined_figure_is_that_of_each_validation(weight: float) -> None:
    twin = Twin(weight)
    monitor = EquivarianceMonitor(VECTORS, "net", num_batches=None, combine="val_loss", weight=weight)
    trainer(monitor, twin, max_epochs=3).fit(Model(), loader(), loader())
    assert twin.logged == pytest.approx(twin.values, rel=1e-5)
    assert len(set(twin.logged)) == 3  # none is that of an earlier one


def test_training_goes_on_until_the_task_is_learned() -> None:
    """The error alone stops it at once: it was smallest where nothing was learned."""
    epochs = {}
    for watched in ("equivariance_error", "equivariance_error/combined"):
        stop, losses = EarlyStopping(watched, patience=2), History("val_loss")
        t = trainer(EquivarianceMonitor(VECTORS, "net", combine="val_loss"), stop, losses, max_epochs=20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            t.fit(Model(), loader(), loader())
        epochs[watched] = t.current_epoch, losses.values[-1]
    alone, combined = epochs.values()
    assert alone[0] == 3
    assert combined[0] >= 6
    assert combined[1] < 0.2 * alone[1]


@pytest.mark.parametrize("late", [False, True])
def test_a_figure_that_is_not_there_is_an_error_that_names_those_that_are(late: bool) -> None:
    monitor = EquivarianceMonitor(VECTORS, "net", combine="val_loss")
    with pytest.raises(ValueError, match=r"combine='val_loss' was not logged in `validation_step`.*") as caught:
        trainer(monitor, max_epochs=2).fit(Model("val_loss" if late else "loss", late), loader(), loader())
    assert late or "combine one of ['loss']" in str(caught.value)


def test_a_test_has_no_combined_figure_and_the_weight_is_checked() -> None:
    monitor = EquivarianceMonitor(VECTORS, "net", combine="val_loss")
    (logged,) = trainer(monitor).test(Model(), loader(), verbose=False)
    assert set(logged) == {"val_loss", "test_equivariance_error"}
    with pytest.raises(ValueError, match="weight"):
        EquivarianceMonitor(VECTORS, "net", combine="val_loss", weight=float("nan"))


def warned(*callbacks: L.Callback) -> list[str]:
    """What fit says of who watches what; the monitor also measures the Lie derivative."""
    monitor = EquivarianceMonitor(VECTORS, "net", combine="val_loss", metrics=[LieDerivativeError(VECTORS)])
    remul = REMUL(VECTORS, "net", tolerance=0.1, balance="dual")
    t = trainer(monitor, remul, *callbacks, enable_checkpointing=True, max_steps=1, limit_val_batches=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.fit(Model(), loader(), loader())
    return [str(w.message) for w in caught if "looks for the smallest" in str(w.message)]


@pytest.mark.parametrize("name", ["equivariance_error", "lie_derivative/total", "remul/equivariance_error"])
def test_fit_says_so_where_an_error_alone_is_watched(name: str, tmp_path: Any) -> None:
    (message,) = warned(EarlyStopping(name, strict=False))
    assert message.startswith(f"EarlyStopping looks for the smallest '{name}'")
    assert "combine='val_loss'" in message
    (message,) = warned(ModelCheckpoint(tmp_path, monitor=name))
    assert message.startswith("ModelCheckpoint")


def test_fit_says_nothing_of_the_task_of_both_or_of_a_large_error(tmp_path: Any) -> None:
    quiet = [EarlyStopping(name, strict=False) for name in ("val_loss", "equivariance_error/combined")]
    assert warned(*quiet, ModelCheckpoint(tmp_path, monitor="equivariance_error", mode="max")) == []
    assert warned(ModelCheckpoint(tmp_path)) == []
