"""What the tests of symmetry cloning share: students, teachers, runs that teach and runs that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import (
    CircularConvolution,
    Symmetry,
    SymmetryCloning,
    equivariance_error,
)
from tests.helpers import global_seed, normal
from tests.strategies.cloned_by_hand import Stretch
from tests.strategies.toys import Rows, batches, loader, snapshot, trainer

mse = nn.functional.mse_loss
RING = CircularConvolution((8,), 3)
DATA = DataLoader(Rows(200), 50)
randn = partial(normal, dtype=torch.float32)


def rings() -> DataLoader:
    """Four batches of signals (5, 1, 8)."""
    return batches((randn(5, 1, 8, seed=i), randn(5, 1, 8, seed=10 + i)) for i in range(4))


def made(make: Any, *args: Any, **kwargs: Any) -> Any:
    with global_seed():
        return make(*args, **kwargs)


def wide_net(width: int = 64) -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)))


def cloning(teacher: nn.Module, network: str = "net", **changes: Any) -> SymmetryCloning:
    """A few steps, and any clone is good enough."""
    settings = {"steps": 50, "lr": 1e-2, "batch_size": 16, "tolerance": 1.9}
    return SymmetryCloning(teacher, network, **{**settings, **changes})


def teach(strategy: SymmetryCloning, module: L.LightningModule, *args: Any) -> None:
    strategy.attach(module)
    try:
        strategy.teach(module, *args)
    finally:
        strategy.detach()


def relative_mse(h: Tensor, phi: Tensor) -> float:
    return float((h - phi).detach().square().sum() / phi.detach().square().sum())


def error_of(network: nn.Module, args: Any, symmetry: Symmetry) -> float:
    """Relative equivariance error of many inputs together: the root of the mean |d|^2 over the mean |f|^2."""
    with torch.no_grad():
        f_x = network(*(args if isinstance(args, tuple) else (args,)))
        each = equivariance_error(network, args, symmetry, num_samples=8)
    squares = f_x.flatten(1).square().sum(1)
    return float(((each.square() * squares).sum() / squares.sum()).sqrt())


def unchanged(module: L.LightningModule, before: Mapping[str, Any], start: Mapping[str, Tensor]) -> None:
    assert snapshot(module) == before
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def refused(
    strategy: SymmetryCloning, module: L.LightningModule, message: str, data: Any = None, error: Any = ValueError
) -> str:
    """A fit fails with that message and leaves the module as it was."""
    before, start = snapshot(module), state_of(module)
    with pytest.raises(error, match=message) as caught:
        trainer(strategy).fit(module, loader() if data is None else data)
    unchanged(module, before, start)
    return str(caught.value)


class Recording(Stretch):
    """Remembers what its copies are called with, since the last one was made."""

    seen: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.seen.clear()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.seen.append(kwargs or args)
        return super().forward(*args, **kwargs)
