"""REMUL for a tolerance: that it is reached, what is said where it is not, and parts of the batch."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import REMUL, EquivarianceError, Symmetry
from lightning_equiv.strategies.balances import DualBalance
from tests.helpers import global_seed, normal
from tests.strategies.toys import trainer

VECTORS = Symmetry("SO(3)", "1o", "1o")


class Regression(L.LightningModule):
    """A network without symmetry on data that have it, or, with a field, have not."""

    def __init__(self, steps: int, lr: float = 3e-3) -> None:
        super().__init__()
        with global_seed():
            self.net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 3))
        self.steps, self.lr = steps, lr
        self.logged: dict[str, list[float]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.02 ** (1 / self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def data(field: float = 0.0) -> DataLoader[Any]:
    x = normal(256, 3, dtype=torch.float32)
    y = x * x.norm(dim=-1, keepdim=True) + torch.tensor([0.0, 0.0, field])
    return DataLoader(TensorDataset(x, y), batch_size=64)


def error_of(net: nn.Module) -> float:
    metric = EquivarianceError(VECTORS, num_samples=16)
    metric.update(net, normal(256, 3, seed=5, dtype=torch.float32))
    return float(metric.compute())


def fitted(steps: int = 600, field: float = 0.0, **settings: Any) -> tuple[Regression, REMUL, float]:
    module = Regression(steps)
    strategy = REMUL(VECTORS, "net", balance="dual", **settings)
    run = trainer(strategy, max_epochs=-1, max_steps=steps)
    run.fit(module, data(field))
    return module, strategy, float(run.callback_metrics["remul/equivariance_error"])


@pytest.mark.parametrize(("tolerance", "fraction"), [(0.1, 1.0), (0.2, 0.25)])
def test_a_tolerance_is_reached(tolerance: float, fraction: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The .+ does not have many workers")
        module, _, logged = fitted(tolerance=tolerance, fraction=fraction)
    assert 0.5 * tolerance < logged < 1.2 * tolerance  # as the warning has it; far below would be dearly bought
    assert error_of(module.net) < 1.35 * tolerance  # of other inputs than it was trained on


def test_a_tight_tolerance_leaves_the_task_to_be_learned() -> None:
    """Not by a network that is 0, the first that a second loss finds."""
    module, _, _ = fitted(tolerance=0.02)
    x, y = data().dataset.tensors
    with torch.no_grad():
        assert float((module.net(x) - y).square().mean()) < 0.1 * float(y.square().mean())
    assert error_of(module.net) < 0.025


@pytest.mark.parametrize(("error", "share"), [(0.05, 1e-3), (4.0, 1e-3), (100.0, 1e-4), (5000.0, 2e-6)])
def test_the_first_weight(error: float, share: float) -> None:
    """A thousandth of the task loss, or what makes the penalty a hundredth of it."""
    balance = DualBalance(0.05, 0.1)
    balance.update(torch.tensor([3.0, error]))
    step = max(-1.0, min(1.0, 0.5 * math.log(error)))
    assert float(balance.weights[1]) == pytest.approx(3.0 * share * math.exp(0.03 * step), rel=1e-5)


def test_an_output_that_shrinks_is_not_held_ever_more() -> None:
    """The weight of |f(g x) - g f(x)|^2, beta / |f|^2, stays as |f|^2 falls; so does beta where it rises."""
    shrunk, grown, constant = (DualBalance(0.05, 0.1) for _ in range(3))
    for i in range(200):
        losses = torch.tensor([3.0, 1.0])
        shrunk.update(losses, torch.tensor(0.97**i))
        grown.update(losses, torch.tensor(1.03**i))
        constant.update(losses, torch.tensor(1.0))
    smoothed = functools.reduce(lambda s, i: s + 0.05 * (0.97**i - s), range(1, 200), 1.0)
    assert float(shrunk.weights[1]) == pytest.approx(float(constant.weights[1]) * smoothed, rel=1e-4)
    assert torch.equal(grown.weights, constant.weights)


def test_data_that_contradict_the_symmetry_do_not_drive_the_weight_away() -> None:
    """y = |x| x + c: the network has to choose, and is told apart from a training that was too short."""
    with pytest.warns(UserWarning, match=r"above the tolerance of 0.02, with the largest weight that max_weight=1e-05"):
        module, strategy, _ = fitted(tolerance=0.02, field=3.0, max_weight=1e-5)
    assert strategy.state_dict()["weights"][1] <= 1e-5 * strategy.state_dict()["values"][1] * (1 + 1e-6)
    assert error_of(module.net) > 0.02
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


@pytest.mark.parametrize(
    ("last_task_loss", "steps", "words"), [(1.0, 300, "the task loss is 1 of what"), (0.1, 300, ""), (1.0, 100, "")]
)
def test_a_tolerance_that_was_paid_for_with_the_task_is_told(last_task_loss: float, steps: int, words: str) -> None:
    balance = DualBalance(0.05, 0.1)
    for i in range(steps):
        task_loss = 1.0 + (last_task_loss - 1.0) * i / steps
        balance.update(torch.tensor([task_loss, 0.5]))  # half of the tolerance, squared
    verdict = balance.verdict()
    assert verdict == "" if not words else words in verdict and "within the tolerance" in verdict


def test_a_training_that_is_too_short_says_so() -> None:
    with pytest.warns(UserWarning, match="the weight was still rising"):
        fitted(steps=20, tolerance=0.02)


def test_no_gradient_goes_through_the_size_of_the_output() -> None:
    """Of f = s x + c, |f(g x) - g f(x)|^2 does not depend on s: neither does the loss, though |f|^2 does."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s = nn.Parameter(torch.tensor(2.0))
            self.c = nn.Parameter(torch.tensor([0.1, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.s * x + self.c

    module = Regression(1)
    module.net = Shifted()
    strategy = REMUL(VECTORS, "net", balance="dual", tolerance=0.01)
    strategy.attach(module)
    batch = next(iter(data()))
    for _ in range(2):  # beta is 0 in the first
        module.zero_grad()
        (module.training_step(batch, 0) - nn.functional.mse_loss(module.net(batch[0]), batch[1])).backward()
    assert float(module.net.c.grad.norm()) > 0
    assert abs(float(module.net.s.grad)) < 1e-5 * float(module.net.c.grad.norm())
    strategy.detach()


def test_a_part_of_the_batch_is_unbiased_and_holds_one_input_at_least() -> None:
    seen: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    def loss(seed: int, **settings: Any) -> float:
        module = Regression(1)
        with global_seed():
            module.net = Watched(3, 3)
        strategy = REMUL(VECTORS, "net", weight=1.0, seed=seed, **settings)
        strategy.attach(module)
        x, y = next(iter(data()))
        with torch.no_grad():
            total = float(module.training_step([x, y], 0) - nn.functional.mse_loss(module.net(x), y))
        strategy.detach()
        return total

    parts = torch.tensor([loss(seed, fraction=0.25) for seed in range(300)])
    whole = torch.tensor([loss(seed) for seed in range(300)])
    assert set(seen) == {64, 16}
    spread = math.hypot(float(parts.std()), float(whole.std())) / math.sqrt(300)
    assert abs(float(parts.mean() - whole.mean())) < 4 * spread
    seen.clear()
    loss(0, fraction=1e-6)
    assert 1 in seen


def test_steps_without_a_second_pass_are_plain() -> None:
    """every=2: the network runs once in every second step, also in a loop without a Trainer."""
    runs: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(1)
            return super().forward(x)

    module = Regression(1)
    with global_seed():
        module.net = Counted(3, 3)
    strategy = REMUL(VECTORS, "net", every=2)
    strategy.attach(module)
    batch = next(iter(data()))
    counts = []
    for _ in range(4):
        runs.clear()
        module.training_step(batch, 0)
        counts.append(len(runs))
    strategy.detach()
    assert counts == [2, 1, 2, 1]


@pytest.mark.parametrize("settings", [{"fraction": 0.25}, {"every": 3}, {"elements": "near"}, {}])
def test_a_weight_of_zero_is_plain_training_bit_for_bit(settings: dict[str, Any]) -> None:
    """With dropout and a shuffled order: the second pass draws nothing that the user's step would."""

    def trained(*callbacks: L.Callback) -> list[Tensor]:
        module = Regression(20)
        module.net.insert(2, nn.Dropout(0.3))
        with global_seed(3):
            shuffled = DataLoader(data().dataset, batch_size=64, shuffle=True)
            trainer(*callbacks, max_epochs=5).fit(module, shuffled)
        return list(module.parameters())

    plain, zero = trained(), trained(REMUL(VECTORS, "net", weight=0.0, **settings))
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"balance": "dual"}, "together with a tolerance"),
        ({"tolerance": 0.1}, "together with a tolerance"),
        ({"balance": "dual", "tolerance": 0.0}, "tolerance .* above 0"),
        ({"balance": "dual", "tolerance": 0.1, "target": 1}, "without target, loss and weight"),
        ({"fraction": 0.0}, "fraction .* above 0"),
        ({"fraction": 1.5}, "fraction .* at most 1"),
        ({"every": 0}, "every .* at least 1"),
        ({"elements": "far"}, "'haar' or 'near'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        REMUL(VECTORS, "net", **settings)
    with pytest.raises(ValueError, match="finite and has no elements near"):
        REMUL(Symmetry("C4", "1o", "1o"), "net", elements="near")
