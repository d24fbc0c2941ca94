"""The monitor where a validation is not as it should be: words, and a training that goes on."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import EquivarianceMonitor, Symmetry
from tests.helpers import global_seed, normal

VECTORS = Symmetry("SO(3)", "1o", "1o")


class Model(L.LightningModule):
    """`skips` says in which validation batches the network is not called."""

    def __init__(self, skips: Any = lambda model, i: False, network: nn.Module | None = None) -> None:
        super().__init__()
        with global_seed():
            self.net = network or nn.Linear(3, 3)
        self.skips = skips

    def training_step(self, batch: Tensor, i: int) -> Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, i: int) -> None:
        if not self.skips(self, i):
            self.net(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data() -> DataLoader:
    return DataLoader(normal(12, 3, dtype=torch.float32), 4)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), accelerator="cpu", **{"max_epochs": 2, **quiet, **options})


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_batch_may_do_without_the_network(sanity: int) -> None:
    monitor = EquivarianceMonitor(VECTORS, "net", num_batches=2)
    t = trainer(monitor, num_sanity_val_steps=sanity)
    t.fit(Model(lambda _, i: i == 0), data(), data())
    model = Model()
    model.net.load_state_dict(t.lightning_module.net.state_dict())
    monitor.metric.reset()
    for batch in list(data())[1:]:
        monitor.metric.update(model.net, batch)
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(float(monitor.metric.compute()), rel=1e-6)


def test_a_validation_without_the_network_does_not_end_a_training() -> None:
    model = Model(lambda model, _: model.current_epoch == 1)
    t = trainer(EquivarianceMonitor(VECTORS, "net"), num_sanity_val_steps=0, max_epochs=3)
    with pytest.warns(UserWarning, match="network='net' was not called in `validation_step`"):
        t.fit(model, data(), data())
    assert t.current_epoch == 3


def test_a_network_that_is_never_called_is_an_error_after_the_first_validation() -> None:
    t = trainer(EquivarianceMonitor(VECTORS, "net"), num_sanity_val_steps=1)
    with (
        pytest.warns(UserWarning, match="network='net' was not called"),
        pytest.raises(ValueError, match="network='net' was not called in `validation_step`: name the sub-module"),
    ):
        t.fit(Model(lambda *_: True), data(), data())
    assert t.current_epoch == 0


def test_two_monitors_of_one_name_are_refused() -> None:
    monitors = [EquivarianceMonitor(VECTORS, "net"), EquivarianceMonitor(VECTORS, "net", kind="max")]
    for start in (lambda t: t.fit(Model(), data(), data()), lambda t: t.validate(Model(), data(), verbose=False)):
        with pytest.raises(ValueError, match=r"two EquivarianceMonitors log 'equivariance_error'.*name='"):
            start(trainer(*monitors))
    monitors[1].name = "largest"
    trainer(*monitors).validate(Model(), data(), verbose=False)


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_(True)
        energy = (self.scale * x).square().sum()
        return -torch.autograd.grad(energy, x, create_graph=self.training)[0]


@pytest.mark.parametrize("mode", [True, False])
def test_forces_without_needs_grad_are_told_of_it(mode: bool) -> None:
    """The user's own validation turns gradients on for its step."""

    class Enabled(Model):
        def validation_step(self, batch: Tensor, i: int) -> None:
            with torch.inference_mode(False), torch.enable_grad():
                self.net(batch.clone())

    t = trainer(EquivarianceMonitor(VECTORS, "net"), inference_mode=mode)
    with pytest.raises(RuntimeError, match="needs_grad=True"):
        t.validate(Enabled(network=Forces()), data(), verbose=False)
    t = trainer(EquivarianceMonitor(VECTORS, "net", needs_grad=True), inference_mode=mode)
    t.validate(Enabled(network=Forces()), data(), verbose=False)
    assert float(t.callback_metrics["equivariance_error"]) < 1e-6


def test_ranks_may_measure_different_numbers_of_batches() -> None:
    """One of two has nothing: the value is that of the other, and nobody waits for ever."""
    symmetry = Symmetry("C4", "1o", "1o")
    model = Model(lambda model, _: model.global_rank == 1)
    t = trainer(
        EquivarianceMonitor(symmetry, "net", num_samples=None), strategy="ddp_fork", devices=2, max_epochs=1,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    t.fit(model, data(), data())
    value = float(t.callback_metrics["equivariance_error"])
    metric = EquivarianceMonitor(symmetry, num_samples=None).metric
    for batch in data():
        metric.update(model.net, batch)
    assert value == pytest.approx(float(metric.compute()), rel=1e-5)
