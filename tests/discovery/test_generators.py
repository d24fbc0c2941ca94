"""Learned generators: known algebras of functions, planted groups in data, and nothing where there is nothing."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_equiv.discovery.generators import learned_generators


def gaussian(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angle(a, b):
    """Degrees between the lines of two matrices."""
    cosine = float((a * b).sum().abs() / a.norm() / b.norm())
    return math.degrees(math.acos(min(1.0, cosine)))


MINKOWSKI = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
FUNCTIONS = {
    "so(3)": (lambda x: x.square().sum(-1) ** 2 + x.square().sum(-1), 3, 3),
    "so(1,3)": (lambda x: torch.tanh(((x @ MINKOWSKI) * x).sum(-1)), 4, 6),
    "sl(2)": (lambda x: torch.linalg.det(x) ** 2 + torch.linalg.det(x), (2, 2), 3),
    "so(2)": (lambda x: x.square().sum(-1).sin(), 2, 1),
    "so(1,1)": (lambda x: x.prod(-1), 2, 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_known_algebras(name):
    function, shape, dim = FUNCTIONS[name]
    x = gaussian(200, *(shape if isinstance(shape, tuple) else (shape,)))
    found = learned_generators(function, x)
    assert len(found.matrices) == dim
    assert found.name == name
    assert found.closure < 1e-10
    assert not len(found.trivial)
    if name == "so(1,3)":  # A^T eta + eta A = 0
        a = found.matrices
        assert float((a.mT @ MINKOWSKI + MINKOWSKI @ a).abs().max()) < 1e-9


def test_a_vector_function_equivariant_about_one_axis():
    axis = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3

    def function(x):
        return x * x.square().sum(-1, keepdim=True) + torch.linalg.cross(axis.expand_as(x), x) + axis

    found = learned_generators(function, gaussian(200, 3), outputs="vector")
    assert found.names == ("rotation about (1, 2, 2)/3",)
    assert learned_generators(function, gaussian(200, 3)).name == "none"


def test_a_translation():
    found = learned_generators(lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1), gaussian(200, 2, 2), translations=True)
    assert len(found.matrices) == 3
    assert found.name == "motions of dimension 3, 2 of them translations"
    assert found.closure < 1e-10
    assert sum("translation along" in name for name in found.names) == 2


def test_a_random_network_keeps_nothing():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
    found = learned_generators(network, gaussian(300, 3))
    assert found.name == "none"
    assert float(found.violations[0]) > 0.02
    assert "no linear group" in str(found)


def test_what_moves_no_input_is_no_symmetry():
    x = gaussian(200, 3)
    x[:, 2] = 0
    found = learned_generators(lambda x: x.square().sum(-1) + x[:, 2], x)
    assert len(found.trivial) == 3  # all matrices that act on z alone
    assert len(found.matrices) == 1
    assert found.names == ("rotation about z",)


def planted(name, n=600):
    """Labelled data, and the matrix that leaves the labels alone."""
    generator = torch.Generator().manual_seed(5)
    noise = 0.002 * torch.randn(n, generator=generator, dtype=torch.float64)
    if name == "tilted":
        axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
        x = gaussian(n, 3)
        along, x2 = x @ axis, x.square().sum(-1)
        eps = torch.tensor([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        return x, torch.tanh(along) + 0.3 * (x2 - along.square()) + noise, eps.double()
    if name == "scaling":  # of one component by twice the exponent of the other: y^2 / x
        x = torch.exp(0.5 * gaussian(n, 2))
        return x, (2 * x[:, 1].log() - x[:, 0].log()).sin() + noise, torch.diag(torch.tensor([2.0, 1.0])).double()
    if name == "boost":
        x = gaussian(n, 2)
        return x, torch.tanh(x[:, 0] ** 2 - x[:, 1] ** 2) + noise, torch.tensor([[0.0, 1], [1, 0]]).double()
    x = gaussian(n, 2)
    return x, torch.sin(x[:, 0]) + torch.cos(2 * x[:, 1] + x[:, 0]) + x[:, 1] + noise, None


@pytest.mark.parametrize("name", ["tilted", "scaling", "boost", "nothing"])
def test_planted_groups_are_found_from_data_alone(name):
    """Rotations and boosts to 2 degrees, scalings to 2 % of their exponents."""
    x, y, matrix = planted(name)
    found = learned_generators(None, x, y)
    if matrix is None:
        assert found.name == "none"
        return
    assert len(found.matrices) == 1, found.violations
    a = found.matrices[0]
    assert angle(a, matrix) < 2
    if name == "scaling":
        ratio = float(a[0, 0] / a[1, 1])
        assert ratio == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": gaussian(10, 3)}, "at least 20 inputs, got 10"),
        ({"network": None}, "or labels to fit one to"),
        ({"network": None, "labels": torch.ones(30)}, "not all equal"),
        ({"outputs": "1o"}, "'invariant' or 'vector'"),
        ({"outputs": "vector"}, "vectors of 3 components as outputs"),
        ({"x": torch.ones(30)}, r"vectors \(n, ..., d\)"),
    ],
)
def test_what_cannot_be_looked_for_is_said(change, message):
    settings = {"network": lambda x: x[:, :2], "x": gaussian(30, 3), **change}
    with pytest.raises(ValueError, match=message):
        learned_generators(settings.pop("network"), settings.pop("x"), **settings)
