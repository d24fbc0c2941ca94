"""The trainings of the examples: a restart is a second training of half the length; other optimizers."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import BlockNormalizedAdam
from lightning_equiv.networks.tasks import Classifier, Particles, drawn_anew
from lightning_equiv.networks.vector_neurons import VectorNeuronClassifier
from tests.strategies.toys import trainer


class Net(nn.Linear):
    """Particles move by a linear map of their velocities."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        return positions + super().forward(velocities)


class States(L.Callback):
    """Weights before each step, and its rate."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.weights.append(module.net.weight.detach().clone())
        self.rates.append(optimizer.param_groups[0]["lr"])


def fitted(task: Particles, steps: int) -> States:
    x, v = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    batch = {"charges": x[..., 0], "positions": x, "velocities": v, "targets": x + 2 * v}
    states = States()
    data = torch.utils.data.DataLoader([batch] * steps, batch_size=None)
    trainer(states, max_epochs=1, limit_val_batches=0).fit(task, data)
    return states


@pytest.mark.parametrize("steps", [6, 7])
def test_a_restart_is_two_trainings_of_half_the_length(steps: int) -> None:
    net = Net()
    task = Particles(net, 1e-2, restart=True)
    first, second = {n: p.clone() for n, p in net.state_dict().items()}, task.second
    assert second is not None
    half = (steps + 1) // 2
    both = fitted(task, steps)
    for state, start in ((first, 0), (second, half)):
        alone = Net()
        alone.load_state_dict(state)
        expected = fitted(Particles(alone, 1e-2), half)
        part = slice(start, min(start + half, steps))
        n = part.stop - part.start
        torch.testing.assert_close(both.weights[part], expected.weights[:n], rtol=0, atol=0)
        assert both.rates[part] == pytest.approx(expected.rates[:n])


def test_weights_are_drawn_anew() -> None:
    """The magnitudes there were, in another order with other signs; constants and running means as they were."""
    net = VectorNeuronClassifier(5, 8, num_neighbours=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    anew = drawn_anew(net)
    assert list(anew) == list(before)
    for name, value in anew.items():
        assert torch.equal(value.abs().flatten().sort().values, before[name].abs().flatten().sort().values)
        assert torch.equal(net.state_dict()[name], before[name])
        assert torch.equal(value, before[name]) == ("norm" in name), name


def test_settings() -> None:
    task = Classifier(VectorNeuronClassifier(5, 4, num_neighbours=0), block_normalized=True, free="net.**.linear")
    dense = [name for name, _ in task.named_parameters() if "branch" in name]
    assert len(dense) >= 3
    task.trainer = L.Trainer(max_steps=3, logger=False, enable_checkpointing=False, accelerator="cpu")
    task.trainer.estimated_stepping_batches  # noqa: B018 (3)
    assert isinstance(task.configure_optimizers()["optimizer"], BlockNormalizedAdam)
