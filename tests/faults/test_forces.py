"""Networks that differentiate inside, which build the graph of forces only while they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import REMUL, Invariant, Symmetry
from tests.strategies.toys import Plain, assert_same, batches, rotations, trainer, turn, weights

mse = nn.functional.mse_loss
SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs={"energy": Invariant(), "forces": "1o"})


class Potential(nn.Module):
    """An energy and its forces, as NequIP, SchNetPack and TorchMD-Net compute them."""

    def __init__(self, dropout: float = 0.0, functional: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lift, self.readout = nn.Linear(3, 16), nn.Linear(16, 1)
        self.dropout, self.p = nn.Dropout(0.0 if functional else dropout), dropout if functional else 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.dropout(torch.tanh(self.lift(x)))
            if self.p:
                h = nn.functional.dropout(h, self.p, self.training)
            energy = self.readout(h)[:, 0]
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=self.training)
        return {"energy": energy, "forces": -slope}


class Module(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return mse(self.net(batch["x"])["energy"], batch["energy"])


def data() -> DataLoader:
    torch.manual_seed(1)
    x = torch.randn(4, 8, 3)
    return batches({"x": row, "energy": row.norm(dim=-1), "forces": row} for row in x)


def fit(remul: REMUL | None, net: nn.Module) -> Tensor:
    module = Module(net)
    trainer(*([] if remul is None else [remul])).fit(module, data())
    return weights(module)


@pytest.mark.parametrize("target", [{"forces": "forces"}, {"energy": "energy"}, None])
def test_the_second_loss_trains_forces_and_energies(target: Any) -> None:
    class ByHand(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            first = self.net(batch["x"])
            R = rotations(8, "REMUL", "remul", 0, 0, (self.current_epoch, batch_idx))
            out = self.net(turn(R, batch["x"]))
            wanted = {name: batch[name] for name in target} if target else first
            wanted = {name: turn(R, y) if name == "forces" else y for name, y in wanted.items()}
            return loss + 10.0 * sum(mse(out[name], y) for name, y in wanted.items())

    twin = ByHand(Potential())
    trainer().fit(twin, data())
    ours = fit(REMUL(SYMMETRY, "net", weight=10.0, target=target), Potential())
    assert_same(ours, weights(twin))
    assert (ours - fit(REMUL(SYMMETRY, "net", weight=0.0), Potential())).abs().max() > 1e-2


@pytest.mark.parametrize("functional", [False, True])
def test_its_dropout_is_frozen_or_it_says_that_it_is_not(functional: bool) -> None:
    def state(remul: REMUL | None) -> Tensor:
        torch.manual_seed(2)
        fit(remul, Potential(0.5, functional))
        return torch.get_rng_state()

    remul = REMUL(SYMMETRY, "net", weight=10.0, target={"forces": "forces"})
    if functional:
        with pytest.warns(UserWarning, match=r"differentiates inside.*write nn\.Dropout"):
            drawn = state(remul)
    else:
        drawn = state(remul)
    assert torch.equal(drawn, state(None))


def test_a_loss_without_a_gradient_is_an_error() -> None:
    class Detached(Potential):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = super().forward(x)
            return {**out, "forces": out["forces"].detach()}

    with pytest.raises(RuntimeError, match=r"the equivariance loss has no gradient.*create_graph=True"):
        fit(REMUL(SYMMETRY, "net", target={"forces": "forces"}), Detached())


def test_a_gradient_that_only_the_second_pass_lacks_is_an_error() -> None:
    class Once(Potential):
        calls = 0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = super().forward(x)
            self.calls += 1
            return out if self.calls % 2 else {**out, "forces": out["forces"].detach()}

    with pytest.raises(RuntimeError, match=r"have a gradient as those of the first, got none for forces"):
        fit(REMUL(SYMMETRY, "net"), Once())


def test_a_frozen_network_needs_no_gradient() -> None:
    net = Potential().requires_grad_(False)

    class Shifted(Module):
        def __init__(self) -> None:
            super().__init__(net)
            self.shift = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.shift.square()

    target = {"energy": "energy"}
    symmetry = Symmetry("SO(3)", "1o", {"energy": Invariant(), "forces": "1o"})
    trainer(REMUL(symmetry, "net", target=target)).fit(Shifted(), data())
