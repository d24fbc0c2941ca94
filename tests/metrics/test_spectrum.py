"""The spectrum against linear maps in closed form, polynomial fields, sums over groups, and its own weightings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    SO3,
    EquivarianceError,
    EquivarianceSpectrum,
    Invariant,
    Permuted,
    Point,
    Spectrum,
    Symmetry,
    as_group,
    as_representation,
    equivariance_error,
    equivariance_spectrum,
)
from lightning_equiv.groups.angles import turns
from tests.helpers import close, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


def mlp(n_in: int = 3, n_out: int = 3) -> nn.Module:
    net = nn.Sequential(nn.Linear(n_in, 8), nn.Tanh(), nn.Linear(8, n_out)).double()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = normal(*parameter.shape, seed=i) / 2
    return net


def dense(symmetry: Symmetry, side: str, a: Tensor) -> Tensor:
    """The matrices (dim algebra, d, d) of the infinitesimal action, column by column."""
    representation = as_representation({"in": symmetry.inputs[0], "out": symmetry.outputs}[side])
    algebra = as_group(symmetry.group).algebra()
    eye = torch.eye(a.shape[0 if side == "out" else 1], dtype=torch.float64)
    return torch.stack([representation.infinitesimal(algebra[i], eye).mT for i in range(len(algebra))])


def split_by_casimir(symmetry: Symmetry, w: Tensor) -> dict[float, Tensor]:
    """|W_J|^2 by the eigenvalue J (J + 1) of - sum_A ad(A)^2, ad(A) W = A_out W - W A_in."""
    a_in, a_out = dense(symmetry, "in", w), dense(symmetry, "out", w)
    d_out, d_in = w.shape
    eye_in, eye_out = torch.eye(d_in, dtype=w.dtype), torch.eye(d_out, dtype=w.dtype)
    ad = torch.stack(
        [torch.kron(o, eye_in) - torch.kron(eye_out, i.mT.contiguous()) for i, o in zip(a_in, a_out, strict=True)]
    )
    values, vectors = torch.linalg.eigh(-(ad @ ad).sum(0))
    found: dict[float, Tensor] = {}
    for value, part in zip(values.round().tolist(), (vectors.mT @ w.reshape(-1)).square(), strict=True):
        found[abs(value)] = found.get(abs(value), torch.zeros(())) + part
    return found


LINEAR = [
    ("SO(2)", Point(), Point(), 2, 2),
    ("SO(2)", "1o+0e", "2e+1o", 4, 8),
    ("SO(3)", "1o", "1o", 3, 3),
    ("SO(3)", "0e+1o+2e", "2x1o+2e", 9, 11),
    ("SE(3)", "1o", "1o+0e", 3, 4),
]


@pytest.mark.parametrize(("group", "inputs", "outputs", "d_in", "d_out"), LINEAR)
def test_linear_maps_have_the_energies_of_their_casimir_parts(group, inputs, outputs, d_in, d_out):
    """Summed over an orthonormal basis of inputs, e_J is |W_J|^2 exactly."""
    symmetry, w = Symmetry(group, (inputs,), outputs), normal(d_out, d_in)
    rotations = symmetry if group != "SE(3)" else Symmetry("SO(3)", (inputs,), outputs)
    expected = split_by_casimir(rotations, w)
    spectrum = equivariance_spectrum(
        lambda x: x @ w.mT, torch.eye(d_in, dtype=w.dtype), symmetry, num_samples=None, highest=4
    )
    energies = spectrum.energies.sum(1)
    for casimir, energy in zip(spectrum.harmonics.casimirs.tolist(), energies, strict=True):
        close(energy, torch.as_tensor(expected.get(casimir, 0.0), dtype=w.dtype), 1e-10)
    close(spectrum.rest.sum(), torch.zeros((), dtype=w.dtype), 1e-10)
    close(spectrum.total.sum(), w.square().sum(), 1e-10)
    close(spectrum.variance.sum(), w.square().sum() - expected[0.0], 1e-10)
    a_in, a_out = (dense(rotations, side, w) for side in ("in", "out"))
    lie = (w @ a_in - a_out @ w).square().sum()
    close(spectrum.lie_derivative.sum(), lie, 1e-10)


def test_linear_maps_under_reflections_too():
    """A map from o3 irreps to others: e_J of parity p is |W_J|^2 of the blocks whose parities multiply to p."""
    w, odd_in, odd_out = normal(8, 4), torch.tensor([0, 1, 1, 1]), torch.tensor([1, 1, 1, 0, 0, 0, 1, 0])
    full, turned = (Symmetry(group, ("0e+1o",), "1o+1e+0o+0e") for group in ("O(3)", "SO(3)"))
    spectrum = equivariance_spectrum(lambda x: x @ w.mT, torch.eye(4, dtype=w.dtype), full, num_samples=None, highest=3)
    energies = dict(zip(spectrum.harmonics.names, spectrum.energies.sum(1), strict=True))
    odd = (odd_out[:, None] + odd_in) % 2
    for parity, mask in (("e", 1 - odd), ("o", odd)):
        expected = split_by_casimir(turned, w * mask)
        for j in range(4):
            close(energies[f"{j}{parity}"], expected.get(float(j * (j + 1)), torch.zeros((), dtype=w.dtype)), 1e-10)
    close(spectrum.total.sum(), w.square().sum(), 1e-10)


def test_reflections_are_told_apart_by_parity():
    """x -> (x, x as a pseudovector): the second half is all of it odd, of degree 0."""
    symmetry = Symmetry("O(3)", "1o", "1o+1e")
    spectrum = equivariance_spectrum(
        lambda x: torch.cat([x, x], -1), normal(5, 3), symmetry, num_samples=None, highest=2
    )
    energies = dict(zip(spectrum.harmonics.names, spectrum.energies.sum(1).tolist(), strict=True))
    assert energies["0e"] == pytest.approx(energies["0o"], rel=1e-12)
    assert sum(abs(e) for name, e in energies.items() if name not in ("0e", "0o")) < 1e-12


def test_a_polynomial_field_has_the_degrees_of_its_form():
    """X |x|^2 + eps (x.d)^2 x: a quadratic form times an equivariant field, J = 0 and 2 alone."""
    d = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
    field = lambda x: x * x.square().sum(-1, keepdim=True) + 0.3 * (x @ d)[:, None].square() * x  # noqa: E731
    x = normal(7, 3)
    spectrum = equivariance_spectrum(field, x, VECTORS, num_samples=None, highest=5)
    close(spectrum.energies[[1, 3, 4, 5]], torch.zeros(4, 7), 1e-10)
    # (x.d)^2 = |x|^2 (1/3 + 2/3 P_2), E P_2^2 = 1/5
    r = x.square().sum(-1)
    close(spectrum.energies[0], r**3 * (1 + 0.3 / 3) ** 2, 1e-12)
    close(spectrum.energies[2], r**3 * (0.3 * 2 / 3) ** 2 / 5, 1e-12)


def averages(symmetry: Symmetry, network: Any, x: Tensor) -> Tensor:
    """|E_g z|^2 and E_g |z|^2 (2, n) by a loop over a whole group."""
    turned = []
    for g in (symmetry.group.elements()[i] for i in range(symmetry.group.order)):
        (gx,), _ = symmetry.move_inputs(g, (x,))
        turned.append(symmetry.move_outputs(g.inverse(), network(gx)).flatten(1))
    z = torch.stack(turned)
    return torch.stack([z.mean(0).square().sum(-1), z.square().sum(-1).mean(0)])


@pytest.mark.parametrize(
    ("symmetry", "network", "shape"),
    [
        (Symmetry("C4", Point(), Point()), mlp(2, 2), (5, 2)),
        (Symmetry("D3", Point(), Invariant()), mlp(2, 1), (5, 2)),
        (Symmetry("S4", Permuted(1), Permuted(1)), mlp(4, 4), (5, 4)),
        (Symmetry("C3 x S3", Permuted(1), Permuted(1)), mlp(3, 3), (5, 3)),
    ],
    ids=lambda value: str(value.group) if isinstance(value, Symmetry) else "",
)
def test_a_finite_group_is_summed_over(symmetry, network, shape):
    x = normal(*shape)
    with torch.no_grad():
        average, total = averages(symmetry, network, x)
    spectrum = equivariance_spectrum(network, x, symmetry, num_samples=None)
    close(spectrum.energies[0], average, 1e-12)
    close(spectrum.total, total, 1e-12)
    close(spectrum.rest, torch.zeros(len(x)), 1e-12)  # all irreducibles are there
    assert float(spectrum.energies.min()) > -1e-12


def test_permutations_of_a_linear_map():
    """Of S_n, x -> x_1 as an invariant: constant and standard representation."""
    x = normal(3, 4)
    spectrum = equivariance_spectrum(lambda x: x[:, :1], x, Symmetry("S4", Permuted(1), Invariant()), num_samples=None)
    energies = dict(zip(spectrum.harmonics.names, spectrum.energies, strict=True))
    close(energies["[4]"], x.mean(1).square(), 1e-12)
    close(energies["[3,1]"], x.var(1, unbiased=False), 1e-12)
    assert sum(float(e.abs().sum()) for name, e in energies.items() if name not in ("[4]", "[3,1]")) < 1e-12


# ---- sampled ---------------------------------------------------------------------------------------------------------
def test_the_sampled_estimate_is_unbiased():
    network, x = mlp(), normal(1, 3)
    exact = equivariance_spectrum(network, x, VECTORS, num_samples=None, highest=3).energies[:, 0]
    many = equivariance_spectrum(
        network, x.expand(2000, 3).contiguous(), VECTORS, num_samples=12, highest=3, generator=seeded()
    )
    error = many.energies.std(1) / math.sqrt(2000)
    assert bool(((many.energies.mean(1) - exact).abs() < 4 * error).all())
    assert bool((error < 0.05 * exact.sum()).all())


def test_a_small_change_beside_a_large_output_is_not_lost():
    """In float64: the energies of 1e-7 beside 1 are 1e-14, and read to 1e-6."""
    network = lambda x: x + 1e-7 * x[:, :1] * x  # noqa: E731
    spectrum = equivariance_spectrum(network, normal(4, 3), VECTORS, num_samples=None, highest=3)
    scaled = equivariance_spectrum(lambda x: x[:, :1] * x, normal(4, 3), VECTORS, num_samples=None, highest=3)
    close(spectrum.energies[1] / 1e-14, scaled.energies[1], 1e-6)


# ---- the weightings --------------------------------------------------------------------------------------------------
def test_variance_error_and_profile_are_weightings():
    network, x, group = mlp(), normal(1, 3), SO3()
    spectrum = equivariance_spectrum(network, x, VECTORS, num_samples=None, highest=6)
    assert float(spectrum.rest.abs()) < 1e-3 * float(spectrum.total)
    turned = (x[:, None] @ group.sample(4000, generator=seeded()).matrix.mT)[:, 0]  # orbit of x
    error = equivariance_error(network, turned, VECTORS, num_samples=1, kind="absolute", generator=seeded(1)).square()
    assert_mean(error, spectrum.squared_error)
    for angle in (0.3, 1.0, 2.5):
        g = turns(group, angle, len(turned), generator=seeded(2))
        with torch.no_grad():
            d = network((turned[:, None] @ g.matrix.mT)[:, 0]) - (network(turned)[:, None] @ g.matrix.mT)[:, 0]
        assert_mean(d.square().sum(-1), spectrum.squared_profile(g[:1])[0])
    small = turns(group, 1e-3, 1)
    close(spectrum.squared_profile(small)[0] / (1e-6 / 3), spectrum.lie_derivative, 1e-4)


def assert_mean(values: Tensor, expected: Tensor) -> None:
    assert abs(float(values.mean() - expected)) < 4 * float(values.std()) / math.sqrt(len(values))


def test_the_metric_agrees_with_the_error_on_symmetric_data():
    network = mlp()
    x = normal(3000, 3)
    shares, error = EquivarianceSpectrum(VECTORS, num_samples=8, highest=2), EquivarianceError(VECTORS, num_samples=8)
    shares.update(network, x)
    error.update(network, x)
    found = shares.compute()
    assert sum(float(v) for v in found.values()) == pytest.approx(1, abs=1e-6)
    assert 2 * (1 - float(found["0"])) == pytest.approx(float(error.compute()) ** 2, rel=0.02)
    assert shares.intervals()["1"].low < float(found["1"]) < shares.intervals()["1"].high


def test_parts_add_up():
    symmetry = Symmetry("SO(3)", "1o", "0e+1o")
    spectra = equivariance_spectrum(
        mlp(3, 4), normal(4, 3), symmetry, num_samples=8, per_irrep=True, generator=seeded()
    )
    assert set(spectra) == {"total", "0e", "1o"}
    assert isinstance(spectra["0e"], Spectrum)
    close(spectra["total"].energies, spectra["0e"].energies + spectra["1o"].energies, 1e-12)


def test_graphs_are_inputs():
    """Two graphs in one batch read what each reads alone."""
    network, symmetry = mlp(), Symmetry("SO(3)", {"pos": "1o"}, "1o", index="batch")
    x, batch = normal(7, 3), torch.tensor([0, 0, 0, 1, 1, 1, 1])

    def run(data: dict[str, Tensor]) -> Tensor:
        return network(data["pos"])

    both = equivariance_spectrum(run, ({"pos": x, "batch": batch},), symmetry, num_samples=None, highest=2)
    for i in range(2):
        one = {"pos": x[batch == i], "batch": batch[batch == i] * 0}
        alone = equivariance_spectrum(run, (one,), symmetry, num_samples=None, highest=2)
        close(both.energies[:, i], alone.energies[:, 0], 1e-12)
    drawn = equivariance_spectrum(run, ({"pos": x, "batch": batch},), symmetry, num_samples=4, generator=seeded())
    assert drawn.energies.shape == (7, 2)


@pytest.mark.parametrize(
    ("group", "settings", "words"),
    [
        ("SO(3)", {"num_samples": 1}, "num_samples .* at least 2"),
        ("T(3)", {}, "translations alone"),
        ("S9", {}, "S9"),
        ("SO(3)", {"highest": -1}, "highest"),
    ],
)
def test_what_has_no_spectrum_is_refused(group, settings, words):
    symmetry = Symmetry(group, Permuted(1) if group == "S9" else Point(), Invariant())
    with pytest.raises(ValueError, match=words):
        EquivarianceSpectrum(symmetry, **settings)
    with pytest.raises(ValueError, match=words):
        equivariance_spectrum(lambda x: x[:, :1], normal(2, 9 if group == "S9" else 3), symmetry, **settings)
