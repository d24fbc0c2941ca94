"""Layerwise figures against dense Jacobians, slow loops and networks of which it is known what breaks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import (
    SO3,
    Ignored,
    Image,
    Invariant,
    LayerwiseError,
    LayerwiseErrors,
    Symmetry,
    VectorNeurons,
    equivariance_error,
    layerwise_error,
    lie_derivative_error,
)
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import Group
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.vector_neurons import VectorNeuronClassifier, VNLinear
from tests.helpers import close, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")
ALL = {"*": ("1o", "1o")}
ALGEBRA = SO3().algebra()


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


class Matrix(nn.Module):
    """x -> W x, and a bend where it is wanted."""

    def __init__(self, w: Tensor, bend: float = 0.0) -> None:
        super().__init__()
        self.w, self.bend = nn.Parameter(w), bend

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.w.T
        return y + self.bend * y.square()


class Norms(nn.Module):
    """x -> |x| x, which every rotation commutes with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True) * x


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def bent(seed: int) -> Matrix:
    return Matrix(normal(3, 3, seed=seed), 0.3)


# ---- twins: one input and one generator at a time, with dense Jacobians ----------------------------------------------
Maps = list[Callable[[Tensor], Tensor]]


def lie(f: Callable[[Tensor], Tensor], x: Tensor, a: Tensor) -> Tensor:
    """J_f A x - A f(x) of one vector."""
    return torch.func.jacrev(f)(x) @ (a @ x) - a @ f(x)


@torch.no_grad()
def twin(x: Tensor, whole: Callable[[Tensor], Tensor], terms: Callable[[Tensor, Tensor], list[Tensor]]) -> Any:
    """(c, s, remainder, total) from the terms J_{>i} L f_i of one vector and one generator."""
    count, total, rest = len(terms(x[0], ALGEBRA.matrix[0])), 0.0, 0.0
    c, products = torch.zeros(count), torch.zeros(count)
    for a in ALGEBRA.matrix:
        for row in x:
            l, parts = lie(whole, row, a), torch.stack(terms(row, a))
            c += parts.square().sum(-1) / len(x)
            products += parts @ l / len(x)
            total += float(l.square().sum()) / len(x)
            rest += float((l - parts.sum(0)).square().sum()) / len(x)
    return c, products / total, (rest / total) ** 0.5, total


def agrees(errors: LayerwiseErrors, expected: Any, tolerance: float = 1e-10) -> None:
    c, s, remainder, total = expected
    close(errors.makes, c, tolerance)
    close(errors.ends_up, s, tolerance)
    close(errors.remainder, torch.tensor(remainder), max(tolerance, 1e-8))
    close(errors.total, torch.tensor(total), tolerance)


def test_two_bent_layers_against_dense_jacobians() -> None:
    f_1, f_2 = bent(1), bent(2)
    x = normal(6, 3)

    def terms(x: Tensor, a: Tensor) -> list[Tensor]:
        h = f_1(x)
        return [torch.func.jacrev(f_2)(h) @ lie(f_1, x, a), lie(f_2, h, a)]

    errors = layerwise_error(chain(f_1, f_2), x, VECTORS, ALL)
    agrees(errors, twin(x, lambda x: f_2(f_1(x)), terms))
    assert errors.remainder < 1e-12
    close(errors.ends_up.sum(), torch.tensor(1.0))
    assert errors.layers == ("0", "1")
    assert float(errors.makes.min()) > 0.1


def test_a_functional_operation_between_is_the_remainder() -> None:
    f_1, f_2 = bent(1), bent(2)
    x = normal(6, 3)

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f_1, self.f_2 = f_1, f_2

        def forward(self, x: Tensor) -> Tensor:
            return self.f_2(self.f_1(x).relu())

    def terms(x: Tensor, a: Tensor) -> list[Tensor]:
        after = torch.func.jacrev(lambda h: f_2(h.relu()))
        return [after(f_1(x)) @ lie(f_1, x, a), lie(f_2, f_1(x).relu(), a)]

    errors = layerwise_error(Between(), x, VECTORS, ALL)
    agrees(errors, twin(x, lambda x: f_2(f_1(x).relu()), terms))
    assert errors.remainder > 0.1


def test_nothing_but_a_functional_operation() -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Norms()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu()

    errors = layerwise_error(Rectified(), normal(6, 3), VECTORS, ALL)
    close(errors.remainder, torch.tensor(1.0))
    close(errors.makes, torch.zeros(1), 1e-20)
    close(errors.ends_up, torch.zeros(1))
    assert errors.total > 0.1


class Residual(nn.Module):
    """x + f_1(x), then that plus f_2 of it."""

    def __init__(self, num_blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(bent(1 + i) for i in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_residual_network_against_dense_jacobians() -> None:
    net, x = Residual(), normal(6, 3)
    f_1, f_2 = net.blocks

    def terms(x: Tensor, a: Tensor) -> list[Tensor]:
        h = x + f_1(x)
        after = torch.eye(3) + torch.func.jacrev(f_2)(h)
        return [after @ lie(f_1, x, a), lie(f_2, h, a)]

    errors = layerwise_error(net, x, VECTORS, {"blocks.*": ("1o", "1o")})
    agrees(errors, twin(x, net, terms))
    assert errors.remainder < 1e-12
    finite = layerwise_error(Residual(3), x, VECTORS, {"blocks.*": ("1o", "1o")}, finite=True, generator=seeded())
    close(finite.ends_up.sum(), torch.tensor(1.0))
    assert finite.remainder < 1e-12


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = bent(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x=self.layer(x))  # the second time by name


def test_a_layer_that_is_used_twice() -> None:
    net, x = Twice(), normal(6, 3)
    f = net.layer

    def terms(x: Tensor, a: Tensor) -> list[Tensor]:
        return [torch.func.jacrev(f)(f(x)) @ lie(f, x, a) + lie(f, f(x), a)]

    errors = layerwise_error(net, x, VECTORS, ALL)
    agrees(errors, twin(x, net, terms))
    for settings in ({}, {"num_probes": 2}):
        close(layerwise_error(net, x, VECTORS, ALL, **settings).ends_up, torch.ones(1))


# ---- what is known -----------------------------------------------------------------------------------------------
def test_one_broken_layer_of_a_chain() -> None:
    broken = bent(1)
    net, x = chain(Norms(), Matrix(2 * torch.eye(3)), broken, Norms(), Matrix(-torch.eye(3))), normal(6, 3)
    for settings in ({}, {"num_probes": 4}, {"finite": True}):
        errors = layerwise_error(net, x, VECTORS, ALL, **settings)
        close(errors.ends_up, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
        assert errors.remainder < 1e-12
        assert not errors.nothing_to_share
        assert (errors.makes > 1e-3).tolist() == (errors.own > 1e-3).tolist() == [False, False, True, False, False]


def test_two_layers_that_cancel() -> None:
    """Exactly: nothing is left to share. Nearly: shares that are large, and opposite."""
    w, x = normal(3, 3, seed=1), normal(6, 3)
    errors = layerwise_error(chain(Matrix(w), Matrix(w.inverse())), x, VECTORS, ALL)
    assert errors.nothing_to_share
    assert errors.total < 1e-20
    assert errors.ends_up.tolist() == [0.0, 0.0]
    assert errors.remainder == 0
    close(errors.makes[0], errors.makes[1])
    assert errors.makes[0] > 1
    assert "nothing to share" in str(errors)
    nearly = w.inverse() + 1e-3 * normal(3, 3, seed=2)
    errors = layerwise_error(chain(Matrix(w), Matrix(nearly)), x, VECTORS, ALL)
    assert not errors.nothing_to_share
    assert abs(errors.ends_up[0]) > 10
    close(errors.ends_up.sum(), torch.tensor(1.0), 1e-8)


@pytest.mark.parametrize("settings", [{}, {"num_probes": 1}], ids=str)
def test_large_numbers_that_cancel_leave_rounding(settings: dict[str, Any]) -> None:
    """Far more than rounding of f(x) itself, which is x."""
    w = torch.linalg.qr(normal(3, 3, seed=1)).Q @ torch.diag(torch.tensor([1e6, 1.0, 1e-2]))
    errors = layerwise_error(chain(Matrix(w), Matrix(w.inverse())), normal(6, 3), VECTORS, ALL, **settings)
    assert errors.total > 1e-25
    assert errors.nothing_to_share
    assert errors.ends_up.tolist() == [0.0, 0.0]


def test_small_positions_that_a_translation_moves_far() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Norms()

        def forward(self, x: Tensor) -> Tensor:
            return x * (1 / 49) * 49 + 0 * self.layer(x)  # not quite x

    x = 1e-12 * normal(6, 3)
    errors = layerwise_error(Sum(), x, Symmetry("SE(3)", "Point()", "Point()"), ALL)
    assert errors.total > 1e-50
    assert errors.nothing_to_share


def test_an_equivariant_network_has_nothing_to_share() -> None:
    errors = layerwise_error(chain(Norms(), Norms()), normal(6, 3), VECTORS, ALL)
    assert errors.nothing_to_share
    assert float(errors.ends_up.abs().sum() + errors.remainder) == 0


def test_own_is_the_equivariance_error_of_the_layer() -> None:
    f_1, f_2, g = bent(1), bent(2), SO3().sample(5, generator=seeded())
    x = normal(6, 3)
    errors = layerwise_error(chain(f_1, f_2), x, VECTORS, ALL, elements=g)
    for i, (layer, h) in enumerate(((f_1, x), (f_2, f_1(x).detach()))):
        norms = layer(h).square().sum(-1)
        each = equivariance_error(layer, h, VECTORS, elements=g)
        close(errors.own[i], ((each.square() * norms).sum() / norms.sum()).sqrt().detach())
    whole, norms = (chain(f_1, f_2), f_2(f_1(x)).detach().square().sum(-1))
    close(errors.total, (equivariance_error(whole, x, VECTORS, elements=g).square() * norms).mean())


def test_the_total_is_the_lie_derivative_of_the_network() -> None:
    net, x = Residual(), normal(6, 3)
    derivative = lie_derivative_error(net, x, VECTORS)
    errors = layerwise_error(net, x, VECTORS, {"blocks.*": ("1o", "1o")})
    close(errors.total, derivative.total.square() * derivative.norms.mean())


def test_probes_against_exact_figures() -> None:
    net, x, probes, runs = chain(bent(1), bent(2), bent(3)), normal(2, 3), 8, 25
    exact = layerwise_error(net, x, VECTORS, ALL, num_probes=None)
    made = []
    for seed in range(runs):
        errors = layerwise_error(net, x, VECTORS, ALL, num_samples=1, num_probes=probes, generator=seeded(seed))
        close(errors.ends_up, exact.ends_up, 1e-10)  # one backward pass, no probes
        close(errors.total, exact.total, 1e-10)
        made.append(errors.makes)
    assert not torch.allclose(made[0], made[1])
    relative = torch.stack(made).mean(0) / exact.makes - 1
    assert float(relative.abs().max()) < 4 * math.sqrt(2 / (probes * runs))
    assert torch.equal(
        made[0], layerwise_error(net, x, VECTORS, ALL, num_samples=1, num_probes=probes, generator=seeded(0)).makes
    )


def test_a_finite_sum_of_two_layers() -> None:
    """f(g x) - g f(x) telescopes: the first layer is wrong before the second is put right."""
    f_1, f_2, x = bent(1), bent(2), normal(6, 3)
    symmetry = Symmetry("C4", "1o", "1o")
    errors = layerwise_error(chain(f_1, f_2), x, symmetry, ALL, num_samples=None)
    c, products, total = torch.zeros(2), torch.zeros(2), 0.0
    with torch.no_grad():
        for r in o3.Irreps("1o").D_from_matrix(_rotations(symmetry.group)):
            d = f_2(f_1(x @ r.T)) - f_2(f_1(x)) @ r.T
            parts = [f_2(f_1(x @ r.T)) - f_2(f_1(x) @ r.T), f_2(f_1(x) @ r.T) - f_2(f_1(x)) @ r.T]
            c += torch.stack([p.square().sum() for p in parts]) / 24
            products += torch.stack([(p * d).sum() for p in parts]) / 24
            total += float(d.square().sum()) / 24
    agrees(errors, (c, products / total, 0.0, total))
    assert errors.remainder < 1e-12


def _rotations(group: Group) -> Tensor:
    return group.elements().matrix_in(3)


def test_a_finite_remainder_and_a_layer_used_twice() -> None:
    class Between(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    errors = layerwise_error(Between(), normal(6, 3), VECTORS, ALL, finite=True, generator=seeded())
    assert 0.1 < errors.remainder < 3
    errors = layerwise_error(Twice(), normal(6, 3), VECTORS, ALL, finite=True, generator=seeded())
    close(errors.ends_up, torch.ones(1))
    assert errors.remainder < 1e-12


def test_directions_of_the_algebra() -> None:
    """A network that knows which way is up is equivariant about that axis, and has nothing to share there."""
    net, x = chain(Norms(), Matrix(torch.diag(torch.tensor([1.0, 1.0, 2.0])))), normal(6, 3)
    about = [layerwise_error(net, x, VECTORS, ALL, algebra=ALGEBRA[i]) for i in range(3)]
    assert sorted(errors.nothing_to_share for errors in about) == [False, False, True]
    whole = layerwise_error(net, x, VECTORS, ALL)
    close(torch.stack([errors.makes for errors in about]).sum(0), whole.makes)


# ---- real networks ---------------------------------------------------------------------------------------------------
class OtherLinear(nn.Linear):
    """A linear map that says irreps and does not respect them."""

    def __init__(self, irreps_in: Any, irreps_out: Any) -> None:
        super().__init__(o3.Irreps(irreps_in).dim, o3.Irreps(irreps_out).dim)
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)


class E3nnNetwork(nn.Module):
    """Linear maps, a tensor product of two inputs, a gate and a norm activation, with a residual path."""

    def __init__(self) -> None:
        super().__init__()
        hidden, gated = o3.Irreps("4x0e+4x1o+2x2e"), "4x0e+6x0e+4x1o+2x2e"
        self.first = o3.Linear("2x0e+1x1o", hidden)
        self.product = o3.FullyConnectedTensorProduct(hidden, "1x1o+1x2e", gated)
        self.gate = e3nn_nn.Gate("4x0e", [torch.tanh], "6x0e", [torch.sigmoid], "4x1o+2x2e")
        self.norm = e3nn_nn.NormActivation(hidden, torch.sigmoid, normalize=True, epsilon=1e-3, bias=True)
        self.last = o3.Linear(hidden, "1o")

    def forward(self, x: Tensor, direction: Tensor) -> Tensor:
        h = self.first(x)
        y = o3.spherical_harmonics("1x1o+1x2e", direction, normalize=True)
        return self.last(h + self.norm(self.gate(self.product(h, y))))


@pytest.mark.parametrize("broken", [None, "first", "last", "inside"])
def test_a_network_of_e3nn(broken: str | None) -> None:
    net = E3nnNetwork()
    if broken == "inside":
        net.norm = nn.Sequential(net.norm, OtherLinear("4x0e+4x1o+2x2e", "4x0e+4x1o+2x2e"))
    elif broken:
        linear = getattr(net, broken)
        setattr(net, broken, OtherLinear(linear.irreps_in, linear.irreps_out))
    symmetry = Symmetry("O(3)", ("2x0e+1o", "1o"), "1o")
    layers = ["first", "product", "gate", "last", "norm.*" if broken == "inside" else "norm"]
    errors = layerwise_error(net, (normal(5, 5), normal(5, 3, seed=1)), symmetry, layers)
    wrong = {None: None, "inside": "norm.1"}.get(broken, broken)
    expected = [float(name == wrong) for name in errors.layers]
    close(errors.ends_up, torch.tensor(expected), 1e-9)
    assert (errors.own > 1e-3).tolist() == [bool(one) for one in expected]
    assert errors.remainder < 1e-9
    assert errors.nothing_to_share == (broken is None)


def test_vector_neurons() -> None:
    """Features in the middle dimensions, and points behind them; the logits are invariant."""
    net = VectorNeuronClassifier(3, channels=4, num_neighbours=3)

    class Shifted(VNLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([0.1, 0.2, 0.3]).view(3, *[1] * (x.ndim - 3))

    symmetry, cloud = Symmetry("SO(3)", "1o", "3x0e"), normal(2, 10, 3)
    assert layerwise_error(net, cloud, symmetry, VNLinear).nothing_to_share
    net.local.linear = Shifted(4, 4)
    with pytest.raises(ValueError, match="families="):
        layerwise_error(net, cloud, symmetry, VNLinear)
    families = [VectorNeurons(of=Shifted)]
    errors = layerwise_error(net, cloud, symmetry, VNLinear, families=families)
    metric = LayerwiseError(symmetry, VNLinear, families=families)
    metric.update(net, cloud)
    close(metric.compute()["ends_up/local.linear"], torch.tensor(1.0), 1e-6)
    assert len(errors.layers) == 7
    close(errors.ends_up, torch.tensor([float(name == "local.linear") for name in errors.layers]), 1e-9)
    assert errors.remainder < 1e-9
    assert (errors.own > 1e-3).tolist() == [name == "local.linear" for name in errors.layers]


def test_message_passing() -> None:
    """Linear maps with scalars first, called on nodes and on edges; what is between them is functional."""
    net = E3nnMessagePassing("4x0e+2x1o", 2, num_neighbours=3)
    linear = net.layers[0].message
    net.layers[0].message = OtherLinear(linear.irreps_in, linear.irreps_out)
    symmetry = Symmetry("SO(3)", (Invariant(), "1o", "1o"), "1o")
    inputs = normal(2, 4), normal(2, 4, 3, seed=1), normal(2, 4, 3, seed=2)
    errors = layerwise_error(net, inputs, symmetry, [o3.Linear, OtherLinear], num_samples=2)
    assert len(errors.layers) == 11
    close(errors.ends_up, torch.tensor([float(name == "layers.0.message") for name in errors.layers]), 1e-9)
    assert errors.remainder < 1e-8


class Convolution(nn.Module):
    """Vectors of nodes from vectors of neighbours and of edges, and a preferred axis where it is broken."""

    def __init__(self, axis: float = 0.0) -> None:
        super().__init__()
        self.axis = axis * torch.tensor([0.0, 0.0, 1.0])

    def forward(self, edge_index: Tensor, x: Tensor, edge: Tensor) -> Tensor:
        i, j = edge_index
        y = (x[j] * edge).sum(-1, keepdim=True) * edge + x[j].norm(dim=-1, keepdim=True) * self.axis
        return x + torch.zeros_like(x).index_add(0, i, y)


class Graphs(nn.Module):
    def __init__(self, *axes: float) -> None:
        super().__init__()
        self.layers, self.mean = nn.ModuleList(map(Convolution, axes)), True

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        edge = pos[edge_index[0]] - pos[edge_index[1]]
        x = pos - pos.mean(0) if self.mean else pos
        for layer in self.layers:
            x = layer(edge_index, x, edge)
        return torch.zeros(int(batch.max()) + 1, 3).index_add(0, batch, x)


def graphs() -> tuple[Tensor, Tensor, Tensor]:
    pos, batch = normal(5, 3), torch.tensor([0, 0, 0, 1, 1])
    edge_index = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    return pos, edge_index, batch


@pytest.mark.parametrize("group", ["SO(3)", "SE(3)"])
def test_graphs_with_a_batch_vector(group: str) -> None:
    """What moves a layer's other inputs is not said anywhere: they bring it along. Translations move no vector."""
    symmetry = Symmetry(group, {"pos": "Point()", "edge_index": "NodeIndex()"}, "1o", index="batch")
    layers = {"layers.*": ("1o", "1o")}
    broken = layerwise_error(Graphs(0.0, 0.5, 0.0), graphs(), symmetry, layers)
    close(broken.ends_up, torch.tensor([0.0, 1.0, 0.0]))
    assert broken.remainder < 1e-12
    assert (broken.own > 1e-3).tolist() == [False, True, False]
    both = layerwise_error(Graphs(0.3, 0.5), graphs(), symmetry, layers)
    close(both.ends_up.sum(), torch.tensor(1.0))
    assert both.remainder < 1e-12
    finite = layerwise_error(Graphs(0.3, 0.5), graphs(), symmetry, layers, finite=True)
    close(finite.ends_up.sum(), torch.tensor(1.0))
    assert finite.remainder < 1e-12


def test_a_mean_over_graphs() -> None:
    """Two graphs in one call, against each alone."""
    symmetry = Symmetry("SO(3)", {"pos": "1o", "edge_index": "NodeIndex()"}, "1o", index="batch")
    net, layers = Graphs(0.3, 0.5), {"layers.*": ("1o", "1o")}
    pos, edge_index, _ = graphs()
    both = layerwise_error(net, graphs(), symmetry, layers)
    centred = pos - pos.mean(0)  # as the network sees them together
    net.mean = False
    one = layerwise_error(net, (centred[:3], edge_index[:, :4], torch.zeros(3, dtype=torch.long)), symmetry, layers)
    two = layerwise_error(net, (centred[3:], edge_index[:, 4:] - 3, torch.zeros(2, dtype=torch.long)), symmetry, layers)
    close(both.makes, (one.makes + two.makes) / 2)
    close(both.total, (one.total + two.total) / 2)


def test_several_inputs_that_chosen_layers_made() -> None:
    """A broken layer before another input of a layer is not charged to that layer again."""

    class Scaled(nn.Module):
        def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
            return scalars * vectors

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors, self.scaled = bent(1), Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x.norm(dim=-1, keepdim=True), self.vectors(x))

    errors = layerwise_error(Net(), normal(6, 3), VECTORS, {"vectors": ("1o", "1o"), "scaled": ("0e", "1o")})
    close(errors.ends_up, torch.tensor([1.0, 0.0]))
    assert errors.own[1] < 1e-12
    assert errors.makes[1] < 1e-20
    assert errors.remainder < 1e-12


def test_convolutions_of_a_finite_group() -> None:
    def symmetric(conv: nn.Conv2d) -> nn.Conv2d:
        conv.weight.data = sum(conv.weight.data.rot90(k, (-2, -1)) for k in range(4)) / 4
        return conv

    make = lambda a, b: nn.Conv2d(a, b, 3, padding=1)  # noqa: E731
    net = chain(symmetric(make(1, 4)), nn.ReLU(inplace=True), make(4, 4), nn.ReLU(inplace=True), symmetric(make(4, 2)))
    symmetry, image = Symmetry("C4", Image(), Image()), normal(3, 1, 6, 6)
    errors = layerwise_error(net, image, symmetry, {"[024]": (Image(), Image())}, num_samples=None)
    close(errors.ends_up, torch.tensor([0.0, 1.0, 0.0]))
    close(errors.remainder, torch.tensor(0.0))
    assert errors.layers == ("0", "2", "4")


@pytest.mark.parametrize("settings", [{}, {"num_probes": 1}, {"finite": True}], ids=str)
def test_what_follows_may_work_in_place(settings: dict[str, Any]) -> None:
    layers, x = {"[02]": ("1o", "1o")}, normal(6, 3)
    expected, errors = (
        layerwise_error(
            chain(bent(1), nn.ReLU(inplace=inplace), bent(2)), x, VECTORS, layers, generator=seeded(), **settings
        )
        for inplace in (False, True)
    )
    assert torch.equal(x, normal(6, 3))
    for name, value in expected.as_dict().items():
        close(errors.as_dict()[name], value)


def test_a_layer_without_a_derivative_in_torch() -> None:
    """By central differences, which see what leaves the graph."""

    class Outside(Matrix):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(super().forward(x).detach().numpy().copy())

    double = Matrix(2 * torch.eye(3))  # has no defect, and of 0 every derivative is right
    within, outside = (chain(double, bent(1), last(normal(3, 3, seed=2), 0.3)) for last in (Matrix, Outside))
    for layers in (ALL, {"[01]": ("1o", "1o")}):
        expected = layerwise_error(within, normal(6, 3), VECTORS, layers)
        for num_probes in (None, 1):
            errors = layerwise_error(outside, normal(6, 3), VECTORS, layers, num_probes=num_probes)
            close(errors.ends_up, expected.ends_up, 1e-6)
            close(errors.makes, expected.makes, 1e-6)
    assert layerwise_error(chain(Norms(), Outside(torch.eye(3) / 3)), normal(6, 3), VECTORS, ALL).nothing_to_share


class Energy(nn.Module):
    """An energy of vector layers, and its forces."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = chain(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.requires_grad_()
        energy = self.layers(x).square().sum(-1, keepdim=True)
        (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return {"energy": energy, "forces": -gradient}


def test_a_network_that_differentiates_inside() -> None:
    symmetry = Symmetry("SO(3)", "1o", {"energy": "0e", "forces": Ignored()})
    layers = {"layers.*": ("1o", "1o")}
    net = Energy(Norms(), bent(1), bent(2))
    with pytest.raises(RuntimeError, match="needs_grad=True"):
        layerwise_error(net, normal(6, 3), symmetry, layers)
    errors = layerwise_error(net, normal(6, 3), symmetry, layers, needs_grad=True)

    class EnergyAlone(Energy):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"energy": self.layers(x).square().sum(-1, keepdim=True)}

    alone = EnergyAlone(*net.layers)
    expected = layerwise_error(alone, normal(6, 3), Symmetry("SO(3)", "1o", {"energy": "0e"}), layers)
    close(errors.ends_up, expected.ends_up)
    close(errors.makes, expected.makes)
    assert errors.remainder < 1e-12
    assert all(p.grad is None for p in net.parameters())


def test_a_graph_of_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data")

    class Net(Graphs):
        def forward(self, graph: Any) -> Tensor:
            return super().forward(graph.pos, graph.edge_index, graph.batch)

    pos, edge_index, batch = graphs()
    edges = edge_index[:, :4], edge_index[:, 4:] - 3
    both = data.Batch.from_data_list([data.Data(pos=pos[batch == i], edge_index=edges[i]) for i in range(2)])
    layers = {"layers.*": ("1o", "1o")}
    errors = layerwise_error(Net(0.3, 0.5), both, Symmetry("SO(3)", {"pos": "1o"}, "1o"), layers, finite=True)
    symmetry = Symmetry("SO(3)", {"pos": "1o", "edge_index": "NodeIndex()"}, "1o", index="batch")
    assert errors.remainder < 1e-12
    errors = layerwise_error(Net(0.3, 0.5), both, Symmetry("SO(3)", {"pos": "1o"}, "1o"), layers)
    expected = layerwise_error(Graphs(0.3, 0.5), graphs(), symmetry, layers)
    close(errors.makes, expected.makes)
    close(errors.ends_up, expected.ends_up)


# ---- what it leaves, and what it refuses -----------------------------------------------------------------------------
def test_in_inference_mode() -> None:
    net, x = chain(bent(1), bent(2)), normal(6, 3)
    for settings in ({}, {"num_probes": 2}, {"finite": True}):
        expected = layerwise_error(net, x, VECTORS, ALL, generator=seeded(), **settings)
        with torch.inference_mode():
            errors = layerwise_error(net, x.clone(), VECTORS, ALL, generator=seeded(), **settings)
        close(errors.ends_up, expected.ends_up)


@pytest.mark.parametrize("fails_at", [3, 8, 15])
@pytest.mark.parametrize("settings", [{}, {"num_probes": 2}, {"finite": True}], ids=str)
def test_hooks_are_gone_after_an_exception(fails_at: int, settings: dict[str, Any]) -> None:
    class Fails(Matrix):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls >= fails_at:
                raise KeyError("its own")
            return super().forward(x)

    net = chain(bent(1), Fails(normal(3, 3)), bent(2)).train()
    with pytest.raises(KeyError, match="its own"):
        layerwise_error(net, normal(6, 3), VECTORS, ALL, **settings)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(m.training for m in net.modules())
    assert torch.is_grad_enabled()


def test_an_unknown_layer_is_named() -> None:
    net = nn.ModuleDict({"head": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"'head' \(Linear\) does not say .* layers=\{'head': \(inputs, outputs\)\}"):
        layerwise_error(_calling(net, "head"), normal(6, 3), VECTORS, "**.head")


def _calling(net: nn.Module, *names: str) -> nn.Module:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in net.named_children():
                self.add_module(name, child)

        def forward(self, x: Tensor) -> Tensor:
            for name in names:
                x = getattr(self, name)(x)
            return x

    return Calling()


def test_a_layer_that_does_not_run_is_named() -> None:
    net = _calling(nn.ModuleDict({"a": bent(1), "b": bent(2)}), "a")
    with pytest.raises(ValueError, match=r"layers \['b'\] did not run"):
        layerwise_error(net, normal(6, 3), VECTORS, ALL)


def test_a_layer_between_other_things_is_named() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[0]

    with pytest.raises(ValueError, match=r"'pair' \(Pair\) maps Tensor to tuple"):
        layerwise_error(Net(), normal(6, 3), VECTORS, ALL)


def test_layers_inside_of_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.1' lies inside '0'"):
        layerwise_error(chain(chain(bent(1), bent(2))), normal(6, 3), VECTORS, {"0": ("1o", "1o"), "0.1": ("1o", "1o")})


def test_features_of_another_size_are_named() -> None:
    with pytest.raises(ValueError, match=r"layer '0' \(Matrix\), its output of shape \(6, 3\)"):
        layerwise_error(chain(bent(1)), normal(6, 3), VECTORS, {"0": ("1o", "2x1o")})


def test_a_network_whose_path_depends_on_its_features() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = bent(1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) if self.calls < 4 else self.layer(self.layer(x))

    with pytest.raises(ValueError, match="expected the network to call its layers as before, 1 times"):
        layerwise_error(Random(), normal(6, 3), VECTORS, ALL)


def test_a_layer_that_draws_is_refused() -> None:
    class Noisy(Matrix):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn_like(x)

    with pytest.raises(ValueError, match="draws random numbers in evaluation mode"):
        layerwise_error(chain(Noisy(torch.eye(3))), normal(6, 3), VECTORS, ALL)


def test_a_function_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"expected a network that is an nn\.Module"):
        layerwise_error(lambda x: x, normal(6, 3), VECTORS, ALL)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["num_samples", "num_probes"])
def test_numbers_are_checked(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        LayerwiseError(VECTORS, ALL, **{setting: 0})
    with pytest.raises(ValueError, match=setting):
        layerwise_error(chain(bent(1)), normal(6, 3), VECTORS, ALL, **{setting: 0})


# ---- the metric ------------------------------------------------------------------------------------------------------
def test_the_metric_sums_over_batches() -> None:
    net, x = Residual(), normal(7, 3)
    layers = {"blocks.*": ("1o", "1o")}
    metric = LayerwiseError(VECTORS, layers)
    for batch in x.split(4):
        metric.update(net, batch)
    whole = layerwise_error(net, x, VECTORS, layers).as_dict()
    found = metric.compute()
    assert found.keys() == whole.keys()
    for name in ("makes/blocks.0", "ends_up/blocks.0", "ends_up/blocks.1", "total"):
        close(found[name], whole[name], 1e-6)
    assert not bool(metric.compute()["total"].isnan())
    metric.reset()
    with pytest.warns(UserWarning, match="before"):
        assert bool(metric.compute()["total"].isnan())


SETTINGS: list[dict[str, Any]] = [{}, {"finite": True}, {"num_probes": 2}, {"num_samples": 3}, {"needs_grad": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_metric_hands_its_settings_on(settings: dict[str, Any]) -> None:
    net, symmetry = Energy(Norms(), bent(1)), Symmetry("SO(3)", {"x": "1o"}, {"energy": "0e", "forces": Ignored()})
    if "needs_grad" not in settings:
        net, symmetry = Residual(), Symmetry("SO(3)", {"x": "1o"}, "1o")
    layers = {"*.*": ("1o", "1o")}
    metric = LayerwiseError(symmetry, layers, seed=5, **settings)
    metric.update(net, x=normal(6, 3))
    generator = derived_generator("LayerwiseError", 5, 0, 1)
    expected = layerwise_error(
        net, (), symmetry, layers, kwargs={"x": normal(6, 3)}, generator=generator, **settings
    ).as_dict()
    found = metric.compute()
    assert found == {name: value.float() for name, value in expected.items()}


def test_another_network_is_refused() -> None:
    metric = LayerwiseError(VECTORS, ALL)
    metric.update(chain(bent(1)), normal(6, 3))
    with pytest.raises(ValueError, match=r"expected a network with the layers .* \['0'\], got \['0', '1'\]"):
        metric.update(chain(bent(1), bent(2)), normal(6, 3))
    metric.reset()
    metric.update(chain(bent(1), bent(2)), normal(6, 3))


def test_a_network_that_returns_nan_is_told() -> None:
    metric = LayerwiseError(VECTORS, ALL)
    metric.update(chain(Matrix(torch.full((3, 3), torch.nan))), normal(6, 3))
    with pytest.raises(ValueError, match="the network returned NaN or infinity"):
        metric.compute()
