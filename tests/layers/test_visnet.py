"""Vectors with channels last in a network of PyG, ViSNet: relaxed, and strict again."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation, IrrepsTensor, VectorChannelsLast, as_group
from lightning_equiv.layers.branch import Branch, make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.strategies.constraint_relaxation.penalties import EPS, penalties
from tests.strategies.toys import trainer

visnet = pytest.importorskip("torch_geometric.nn.models.visnet")

IRREPS = {1: "1o", 2: "1o+2e"}
LAYERS = ("net.**.vec_proj", "net.**.w_src_proj")
HIDDEN = 8


@pytest.fixture(autouse=True)
def _all_pairs_in_float64(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyG's own radius_graph needs one more library; the molecules here are smaller than the radius."""

    def radius_graph(positions: Tensor, *, batch: Tensor, **_: Any) -> Tensor:
        return (batch[:, None] == batch).nonzero().T

    monkeypatch.setattr(visnet, "radius_graph", radius_graph)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Energies(L.LightningModule):
    def __init__(self, lmax: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = visnet.ViSNet(lmax=lmax, hidden_channels=HIDDEN, num_heads=2, num_layers=2, num_rbf=4, max_z=10)

    def training_step(self, batch: Any) -> Tensor:
        return (self.net(*batch)[0] - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def molecules() -> tuple[Tensor, Tensor, Tensor]:
    """Atomic numbers, positions, and which molecule each atom is of."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randint(1, 9, (10,), generator=generator)
    return z, torch.randn(10, 3, generator=generator), torch.arange(10) // 5


def inputs_of(module: nn.Module, net: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    """What a layer is called with while the network runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    net(*args)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("lmax", IRREPS)
def test_its_features_move_as_the_family_says(lmax: int) -> None:
    net = Energies(lmax).net
    still = z, positions, batch = molecules()
    g = as_group("O(3)").sample(1, generator=torch.Generator().manual_seed(0))
    turned = (z, positions @ g.matrix[0].T, batch)
    x, gx = (inputs_of(net.representation_model.vis_mp_layers[1].vec_proj, net, args) for args in (still, turned))
    assert x.shape == (10, (lmax + 1) ** 2 - 1, HIDDEN)
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(gx, IrrepsTensor(IRREPS[lmax], dim=-2)(g, x))


def test_size_and_penalty_of_its_branches() -> None:
    """Dense over components and channels; 0 for the layer's own matrix, a loop over rows and rotations for another."""
    module = Energies(2)
    module.train()
    family = VectorChannelsLast(irreps=IRREPS[2])
    layer = find_layers(module, {LAYERS[0]: family})[1]
    assert (layer.in_features, layer.out_features, layer.dims) == ((8, HIDDEN), (8, 3 * HIDDEN), (-2, -1))
    b = Branch(layer, make_branch(layer, "linear", 1.0).double())
    assert b.network.weight.shape == (24 * HIDDEN, 8 * HIDDEN)
    x = inputs_of(layer.module, module.net, molecules())
    b.inputs = [x]
    W = b.network.weight.detach().reshape(8, 3 * HIDDEN, 8, HIDDEN)
    torch.testing.assert_close(b.apply(x, layer.module(x)), torch.einsum("ipjq,njq->nip", W, x))
    total, group, h = torch.zeros(()), as_group("SO(3)"), 1e-4
    components, algebra = IrrepsTensor(IRREPS[2], dim=1), group.algebra()
    for row in x[:, None]:
        for i in range(3):
            plus, minus = (
                components((algebra[i] * -t).exp(), b.apply(components((algebra[i] * t).exp(), row), layer.module(row)))
                for t in (h, -h)
            )
            total += ((plus - minus) / (2 * h)).square().sum().detach() / len(x)
    torch.testing.assert_close(penalties([b], group)[0].detach(), total.sqrt(), rtol=1e-6, atol=1e-9)
    own = torch.einsum("ij,pq->ipjq", torch.eye(8), layer.module.weight.detach())
    b.network.weight.data.copy_(own.reshape(24 * HIDDEN, 8 * HIDDEN))
    assert penalties([b], group)[0] - EPS**0.5 < 1e-10
    torch.testing.assert_close(b.apply(x, layer.module(x)), layer.module(x))


def error_of(net: nn.Module) -> float:
    """How far the energies change under a rotation."""
    z, positions, batch = molecules()
    R = as_group("SO(3)").sample(1, generator=torch.Generator().manual_seed(0)).matrix[0]
    return float((net(z, positions @ R.T, batch)[0] - net(z, positions, batch)[0]).detach().abs().max())


def test_relaxed_and_strict_again() -> None:
    data = torch.utils.data.DataLoader([molecules()] * 8, batch_size=None)
    layers = dict.fromkeys(LAYERS, VectorChannelsLast(irreps=IRREPS[2]))
    errors: list[float] = []

    class Measure(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            errors.append(error_of(pl_module.net))

    strict, still, relaxed = Energies(2), Energies(2), Energies(2)
    trainer().fit(strict, data)
    trainer(ConstraintRelaxation("SO(3)", layers, peak=0.0)).fit(still, data)
    for a, b in zip(strict.parameters(), still.parameters(), strict=True):
        assert torch.equal(a, b), "theta = 0 is the strict run bit for bit"
    run = trainer(ConstraintRelaxation("SO(3)", layers, peak=1.0, init_scale=1.0, end=0.8), Measure())
    run.fit(relaxed, data)
    assert max(errors) > 1e-4
    assert errors[-1] < 1e-10
    assert list(relaxed.state_dict()) == list(strict.state_dict())
    a, b = (module.net.representation_model.vis_mp_layers[1].vec_proj.weight for module in (strict, relaxed))
    assert not torch.equal(a, b)
