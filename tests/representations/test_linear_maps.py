"""`LinearMaps`: the equivariant part of a matrix, and the heat kernel, against averages, block formulas and e3nn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from e3nn import o3
from torch import Tensor

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.linear_maps import LinearMaps
from lightning_equiv.representations.representation import as_representation

Shape = tuple[int, ...]
CASES: dict[str, tuple[str, str, str, Shape, Shape]] = {
    "irreps, SO(3)": ("SO(3)", "2x0e+2x1o+1x2e", "1x0e+3x1o+1x2e", (13,), (15,)),
    "irreps in two blocks": ("SO(3)", "1o+0e+1o", "1o+2x0e", (7,), (5,)),
    "irreps, O(3)": ("O(3)", "2x0e+2x1o+0o", "1x0e+3x1e+1o", (9,), (13,)),
    "linear part of SE(3)": ("SE(3)", "2x1o", "0e+1o", (6,), (4,)),
    "vector neurons": ("SO(3)", "IrrepsTensor('1o', dim=-1)", "IrrepsTensor('1o', dim=-1)", (4, 3), (2, 3)),
    "channels last": ("SO(3)", "IrrepsTensor('1o+2e', dim=-2)", "IrrepsTensor('1o', dim=-2)", (8, 2), (3, 2)),
    "about an axis": ("SO(2)", "1o", "1o+0e", (3,), (4,)),
    "C4": ("C4", "1o", "1o", (3,), (3,)),
    "D4": ("D4", "Regular(1)", "1o", (8,), (3,)),
    "S4": ("S4", "Permuted(1)", "Permuted(1)", (4,), (4,)),
    "S12": ("S12", "Permuted(1)", "Permuted(1)", (12,), (12,)),
    "S12 to invariants": ("S12", "Permuted(1)", "Invariant()", (12,), (3,)),
    "pixels": ("C4", "Image()", "Image()", (2, 1, 1), (3, 3, 3)),
    "a product": ("O(3) x S3", "Permuted(-2) @ '1o'", "Permuted(-2) @ '1o'", (3, 3), (3, 3)),
}


def make(name: str) -> tuple[LinearMaps, Tensor]:
    group, inputs, outputs, in_features, out_features = CASES[name]
    maps = LinearMaps(as_representation(inputs), as_representation(outputs), in_features, out_features, as_group(group))
    size = math.prod(out_features), math.prod(in_features)
    return maps, torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moved(maps: LinearMaps, g: GroupElement, W: Tensor) -> Tensor:
    """rho_out(g) W rho_in(g)^-1 for each element, (n, out, in): a slow loop over rows and columns of one matrix."""
    found = []
    for one in g:
        columns = maps.outputs(one, W.mT.reshape(-1, *maps.out_features)).flatten(1).mT
        rho_in = maps.inputs(one, torch.eye(W.shape[1], dtype=W.dtype).reshape(-1, *maps.in_features)).flatten(1).mT
        found.append(columns @ torch.linalg.inv(rho_in))
    return torch.stack(found)


def elements(maps: LinearMaps, n: int) -> GroupElement:
    return maps.group.sample(n, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", CASES)
def test_commutes_is_idempotent_and_orthogonal(name: str) -> None:
    maps, W = make(name)
    P = maps.project(W)
    assert P.norm() > 0.1
    torch.testing.assert_close(moved(maps, elements(maps, 5), P), P.expand(5, -1, -1), atol=1e-12, rtol=0)
    torch.testing.assert_close(maps.project(P), P, atol=1e-12, rtol=0)
    torch.testing.assert_close((P * (W - P)).sum(), torch.zeros((), dtype=P.dtype), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_is_the_mean_over_the_group(name: str) -> None:
    """Exactly where it can be listed, within 4.5 standard errors of random elements otherwise."""
    maps, W = make(name)
    if maps.group.order is not None and maps.group.order <= 24:
        torch.testing.assert_close(maps.project(W), moved(maps, maps.group.elements(), W).mean(0), atol=1e-12, rtol=0)
        return
    draws = moved(maps, elements(maps, 400), W)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - maps.project(W)).abs() <= 4.5 * error + 1e-9).all())


def test_is_the_mean_by_quadrature() -> None:
    maps, W = make("irreps, SO(3)")
    g, weights = maps.group.grid(4)
    mean = torch.einsum("k,koi->oi", weights, moved(maps, g, W))
    torch.testing.assert_close(maps.project(W), mean, atol=1e-12, rtol=0)


def test_is_the_block_formula_of_irreps() -> None:
    """delta_ll' / (2l+1) [sum_m W_(c'm)(cm)] (x) I."""
    maps, W = make("irreps, SO(3)")
    expected = torch.zeros_like(W)
    irreps_in, irreps_out = (o3.Irreps(CASES["irreps, SO(3)"][i]) for i in (1, 2))
    for (n_o, o), rows in zip(irreps_out, irreps_out.slices(), strict=True):
        for (n_i, i), columns in zip(irreps_in, irreps_in.slices(), strict=True):
            if o.l == i.l:
                blocks = W[rows, columns].reshape(n_o, o.dim, n_i, i.dim)
                traces = torch.einsum("omim->oi", blocks) / o.dim
                expected[rows, columns] = torch.kron(traces, torch.eye(o.dim, dtype=W.dtype))
    torch.testing.assert_close(maps.project(W), expected, atol=1e-12, rtol=0)


def test_an_e3nn_layer_commutes_already() -> None:
    layer = o3.Linear("4x0e+3x1o+2e", "2x0e+5x1o+2x2e").double()
    W = layer(torch.eye(layer.irreps_in.dim, dtype=torch.float64)).mT.detach()
    maps = LinearMaps(
        as_representation(layer.irreps_in),
        as_representation(layer.irreps_out),
        (layer.irreps_in.dim,),
        (layer.irreps_out.dim,),
        as_group("O(3)"),
    )
    torch.testing.assert_close(maps.project(W), W, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_heat_kernel(name: str) -> None:
    """W at t = 0, P W at infinity, a semigroup in between, which never leaves less of what commutes."""
    maps, W = make(name)
    torch.testing.assert_close(maps.soften(W, 0.0), W, atol=1e-12, rtol=0)
    torch.testing.assert_close(maps.soften(W, math.inf), maps.project(W))
    torch.testing.assert_close(maps.soften(maps.soften(W, 0.1), 0.2), maps.soften(W, 0.3), atol=1e-12, rtol=0)
    torch.testing.assert_close(maps.project(maps.soften(W, 0.3)), maps.project(W), atol=1e-12, rtol=0)
    rests = [(maps.soften(W, t) - maps.project(W)).norm() for t in (0.0, 0.1, 0.3, 1.0)]
    assert all(after < before for before, after in itertools.pairwise(rests))


def test_heat_kernel_is_a_mean_over_small_rotations() -> None:
    """For SO(3), exp(-t J(J+1)) on the part J: of the map from a vector to a vector, by its closed form."""
    maps = LinearMaps(as_representation("1o"), as_representation("1o"), (3,), (3,), as_group("SO(3)"))
    W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trace = torch.eye(3, dtype=W.dtype) * W.trace() / 3
    odd, even = (W - W.mT) / 2, (W + W.mT) / 2 - trace
    expected = trace + math.exp(-0.2) * odd + math.exp(-0.6) * even
    torch.testing.assert_close(maps.soften(W, 0.1), expected, atol=1e-12, rtol=0)


def test_both_ways_agree_on_a_finite_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the elements, and the spectrum of what the generators do."""
    listed, W = make("S4")
    expected = listed.project(W), listed.soften(W, 0.2)
    monkeypatch.setattr("lightning_equiv.representations.linear_maps._MOST_SUMMED", 1)
    spectral, _ = make("S4")
    torch.testing.assert_close(spectral.project(W), expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(spectral.soften(W, 0.2), expected[1], atol=1e-12, rtol=0)


def test_stacked_matrices_and_gradients() -> None:
    maps, W = make("irreps, O(3)")
    stacked = torch.stack([W, 2 * W]).requires_grad_()
    torch.testing.assert_close(maps.project(stacked)[1], 2 * maps.project(W))
    (gradient,) = torch.autograd.grad((stacked - maps.project(stacked)).square().sum() / 2, stacked)
    torch.testing.assert_close(gradient, stacked.detach() - maps.project(stacked.detach()))


@pytest.mark.parametrize(
    ("group", "representation", "features", "match"),
    [
        ("T(3)", "1o", (3,), "moves no features linearly"),
        ("SO(2)", "Image()", (1, 8, 8), "the mean over SO\\(2\\) is not known"),
        ("S60", "Permuted(1)", (60,), "3600 numbers, expected at most 2500"),
    ],
)
def test_a_mean_that_is_not_known(group: str, representation: str, features: Shape, match: str) -> None:
    rho = as_representation(representation)
    with pytest.raises(ValueError, match=match):
        LinearMaps(rho, rho, features, features, as_group(group)).project(torch.zeros(60, 60))


def test_a_stretch_is_refused() -> None:
    rho = as_representation(lambda g, x: 2 * x)
    with pytest.raises(ValueError, match="keeps lengths"):
        LinearMaps(rho, rho, (3,), (3,), as_group("SO(3)"))
