"""Layerwise figures of networks that differentiate inside, against dense Jacobians and slow loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import SO3, Invariant, LayerwiseError, LayerwiseErrors, Point, Symmetry, layerwise_error
from tests.helpers import close, global_seed, normal, seeded

SYMMETRY = Symmetry("SO(3)", "1o", {"energy": "0e", "forces": "1o"})
LAYERS = {"f_*": ("1o", "1o")}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        yield
    torch.set_default_dtype(before)


class Bent(nn.Module):
    """h -> y + 0.3 y^2 of y = W h, or W h / |h|; `backward` has no forward derivative in torch."""

    def __init__(self, seed: int, direction: bool = False, backward: bool = False) -> None:
        super().__init__()
        self.w, self.direction = nn.Parameter(normal(3, 3, seed=seed) / 2), direction
        self.square = Square.apply if backward else torch.square

    def forward(self, h: Tensor) -> Tensor:
        y = (h / h.norm(dim=-1, keepdim=True) if self.direction else h) @ self.w.T
        return y + 0.3 * self.square(y)


class Square(torch.autograd.Function):
    """y^2, which can be differentiated twice backwards and not forwards."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * y * gradient


class Forces(nn.Module):
    """Energies of two layers, and forces; how gradients are taken differs from one network to the next."""

    def __init__(self, way: str, **of_layers: bool) -> None:
        super().__init__()
        self.f_1, self.f_2, self.way = Bent(1, **of_layers), Bent(2, **of_layers), way

    def energy(self, x: Tensor) -> Tensor:
        return self.f_2(self.f_1(x)).square().sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.way == "func":
            return {"energy": self.energy(x), "forces": -torch.func.grad(lambda x: self.energy(x).sum())(x)}
        if self.way == "vmap":
            return {"energy": x[:, :1], "forces": torch.func.vmap(torch.func.grad(lambda x: self.energy(x)[0]))(x)}
        with torch.enable_grad() if self.way != "needs_grad" else torch.set_grad_enabled(torch.is_grad_enabled()):
            x = x.detach().requires_grad_() if self.way == "leaf" else x.requires_grad_()
            energy = self.energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=self.way == "create_graph")
        return {"energy": energy, "forces": -gradient}


def twin(net: Forces, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c, s, remainder, total): one vector and generator at a time; what is added to a layer's output is constant."""
    f_1, f_2 = net.f_1, net.f_2
    ends = (lambda x, d: f_2(f_1(x) + d), lambda x, d: f_2(f_1(x)) + d)
    zero, c, products, total, rest = torch.zeros(3), torch.zeros(2), torch.zeros(2), torch.zeros(()), torch.zeros(())

    def outputs(i: int, x: Tensor, d: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            return ends[i](x, d).square().sum()

        return torch.cat([energy(x)[None], -torch.func.grad(energy)(x)])

    for a in SO3().algebra().matrix:
        for row in x:
            y, (along,) = outputs(0, row, zero), (torch.func.jacrev(outputs, 1)(0, row, zero) @ (a @ row),)
            whole = along - torch.cat([zero[:1], a @ y[1:]])
            parts = []
            for i, (layer, h) in enumerate(((f_1, row), (f_2, f_1(row)))):
                defect = torch.func.jacrev(layer)(h) @ (a @ h) - a @ layer(h)
                parts.append(torch.func.jacrev(outputs, 2)(i, row, zero) @ defect)
            terms = torch.stack(parts).detach()
            whole = whole.detach()
            c += terms.square().sum(-1) / len(x)
            products += terms @ whole / len(x)
            total += whole.square().sum() / len(x)
            rest += (whole - terms.sum(0)).square().sum() / len(x)
    return c, products / total, (rest / total).sqrt(), total


def agrees(errors: LayerwiseErrors, expected: tuple[Tensor, ...], tolerance: float) -> None:
    for value, other in zip((errors.makes, errors.ends_up, errors.remainder, errors.total), expected, strict=True):
        close(value, other, tolerance)


@pytest.mark.parametrize("num_probes", [None, 1])
@pytest.mark.parametrize("way", ["own", "create_graph", "leaf", "func", "needs_grad"])
def test_energies_and_forces_against_dense_jacobians(way: str, num_probes: int | None) -> None:
    """Gradients that the network enables itself need not be asked for, and what it asks for itself changes nothing."""
    net, x = Forces(way), normal(5, 3)
    expected = twin(net, x)
    tolerance = 1e-6 if way == "leaf" else 1e-10  # which is differentiated by central differences
    for needs_grad in (True, False) if way != "needs_grad" else (True,):
        errors = layerwise_error(net, x, SYMMETRY, LAYERS, num_probes=num_probes, needs_grad=needs_grad)
        agrees(errors, expected, tolerance)
        assert not errors.total.requires_grad
    assert 0.1 < float(errors.remainder) < 3  # the layers' backward passes
    assert all(p.grad is None for p in net.parameters())
    assert not x.requires_grad


@pytest.mark.parametrize("direction", [False, True])
@pytest.mark.parametrize("way", ["own", "create_graph"])
def test_layers_without_forward_derivatives(way: str, direction: bool) -> None:
    """A backward pass would go to what other features took the place of, too: along x nothing, for directions."""
    x, expected = normal(5, 3), twin(Forces(way, direction=direction), normal(5, 3))
    errors = layerwise_error(Forces(way, direction=direction, backward=True), x, SYMMETRY, LAYERS)
    agrees(errors, expected, 1e-6)


@pytest.mark.parametrize("way", ["own", "leaf", "func"])
def test_own_errors_and_finite_terms_against_slow_loops(way: str) -> None:
    net, x, g = Forces(way), normal(5, 3), SO3().sample(4, generator=seeded())
    f_1, f_2 = net.f_1, net.f_2
    difference, size, made = torch.zeros(2), torch.zeros(2), torch.zeros(2)

    def outputs(x: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        """Energy and forces with these values of the layers' outputs, through which derivatives are their own."""

        def energy(x: Tensor) -> Tensor:
            h = f_1(x)
            h = h if first is None else h + (first - h).detach()
            y = f_2(h)
            y = y if second is None else y + (second - y).detach()
            return y.square().sum()

        return torch.cat([energy(x)[None], -torch.func.grad(energy)(x)]).detach()

    for r in g.matrix_in(3):
        for row in x:
            h, gh = f_1(row).detach(), r @ f_1(row).detach()
            y, gy = f_2(h).detach(), r @ f_2(h).detach()
            wrong = f_1(r @ row) - gh, f_2(gh) - gy
            difference += torch.stack([d.square().sum() for d in wrong]).detach()
            size += torch.stack([h.square().sum(), y.square().sum()])
            parts = (
                outputs(r @ row, f_1(r @ row).detach()) - outputs(r @ row, gh),
                outputs(r @ row, gh, f_2(gh).detach()) - outputs(r @ row, gh, gy),
            )
            made += torch.stack([part.square().sum() for part in parts])
    errors = layerwise_error(net, x, SYMMETRY, LAYERS, elements=g)
    close(errors.own, (difference / size).sqrt())
    close(errors.makes, made / 20, 1e-10)


def test_the_metric_notices_it_too() -> None:
    net, x = Forces("own"), normal(8, 3)
    metric = LayerwiseError(SYMMETRY, LAYERS)
    for part in x.split(4):
        metric.update(net, part)
    c, s, remainder, _ = twin(net, x)
    found = metric.compute()
    close(torch.stack([found["makes/f_1"], found["makes/f_2"]]), c, 1e-6)
    close(torch.stack([found["ends_up/f_1"], found["ends_up/f_2"]]), s, 1e-6)
    close(found["remainder"], remainder, 1e-6)


def test_a_layer_inside_vmap_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer 'f_1' runs inside torch.func.vmap"):
        layerwise_error(Forces("vmap"), normal(5, 3), SYMMETRY, LAYERS)


# ---- a batch of graphs -----------------------------------------------------------------------------------------------
class Messages(nn.Module):
    """A layer that also takes positions, whose differences it does not treat alike."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * dim + 4, dim), nn.Linear(2 * dim, dim)

    def forward(self, h: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        i, j = edge_index
        d = pos[j] - pos[i]
        sent = self.message(torch.cat([h[i], h[j], d, d.norm(dim=-1, keepdim=True)], -1)).tanh()
        return h + self.update(torch.cat([h, torch.zeros_like(h).index_add(0, i, sent)], -1)).tanh()


class GraphForces(nn.Module):
    """Energies of graphs and the forces on their nodes, of the batch's own positions."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        with global_seed(0):
            self.embed = nn.Embedding(3, dim)
            self.blocks = nn.ModuleList(Messages(dim) for _ in range(2))
            self.out = nn.Linear(dim, 1)

    def features(self, z: Tensor, pos: Tensor, edge_index: Tensor) -> list[Tensor]:
        """What the blocks take and, last, what they give."""
        hs = [self.embed(z)]
        for block in self.blocks:
            hs.append(block(hs[-1], pos, edge_index))
        return hs

    def forward(self, graph: Any) -> dict[str, Tensor]:
        with torch.enable_grad():
            graph.pos.requires_grad_(True)
            e = self.out(self.features(graph.z, graph.pos, graph.edge_index)[-1])[:, 0]
            energy = torch.zeros(graph.num_graphs).index_add(0, graph.batch, e)
            (gradient,) = torch.autograd.grad(energy.sum(), graph.pos)
        return {"energy": energy, "forces": -gradient}


GRAPHS = Symmetry("E(3)", {"pos": Point(), "z": Invariant()}, {"energy": "0e", "forces": "1o"})


def graphs() -> Any:
    data = pytest.importorskip("torch_geometric.data")
    found = []
    for seed, n in enumerate((4, 3, 5)):
        edges = (1 - torch.eye(n)).nonzero().T.contiguous()
        found.append(data.Data(pos=normal(n, 3, seed=seed), z=torch.arange(n) % 3, edge_index=edges))
    return data.Batch.from_data_list(found)


def test_blocks_of_a_graph_network() -> None:
    """By itself a block is moved by the positions that it takes; what it makes is seen by adding it, step by step."""
    net, batch = GraphForces(), graphs()
    g = SO3().sample(3, generator=seeded())
    e3 = Symmetry("SO(3)", GRAPHS.inputs, GRAPHS.outputs)
    errors = layerwise_error(net, batch, e3, {"blocks.*": ("4x0e", "4x0e")}, elements=g)
    with torch.no_grad():
        hs = net.features(batch.z, batch.pos, batch.edge_index)
        for i, block in enumerate(net.blocks):
            turned = torch.stack([block(hs[i], batch.pos @ r.T, batch.edge_index) for r in g.matrix_in(3)])
            expected = (turned - hs[i + 1]).square().sum() / (3 * hs[i + 1].square().sum())
            close(errors.own[i], expected.sqrt())
    assert float(errors.own.min()) > 1e-3

    infinitesimal = layerwise_error(net, batch, e3, {"blocks.*": ("4x0e", "4x0e")})
    step, made = 1e-5, torch.zeros(2)

    def outputs(i: int, d: Tensor) -> Tensor:
        """Energies and forces where d is added to what block i gives."""
        pos = batch.pos.clone().requires_grad_()
        h = net.embed(batch.z)
        for k, block in enumerate(net.blocks):
            h = block(h, pos, batch.edge_index) + (d if k == i else 0)
        energy = net.out(h).sum()
        (gradient,) = torch.autograd.grad(energy, pos)
        sums = torch.zeros(3).index_add(0, batch.batch, net.out(h)[:, 0])
        return torch.cat([sums, -gradient.flatten()]).detach()

    for a in SO3().algebra().matrix:
        for i, block in enumerate(net.blocks):
            with torch.no_grad():
                ends = [block(hs[i], batch.pos @ torch.matrix_exp(t * a).T, batch.edge_index) for t in (step, -step)]
            defect = (ends[0] - ends[1]) / (2 * step)
            along = (outputs(i, step * defect) - outputs(i, -step * defect)) / (2 * step)
            made[i] += along.square().sum() / 3
    close(infinitesimal.makes, made, 1e-6)


def test_an_invariant_head_of_a_graph_network() -> None:
    """Its only input does not move: no defect, and all of the derivative is left."""
    errors = layerwise_error(GraphForces(), graphs(), GRAPHS, {"out": ("4x0e", "0e")})
    assert float(errors.own) == float(errors.makes) == 0
    close(errors.remainder, torch.tensor(1.0), 1e-6)
