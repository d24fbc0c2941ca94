"""Shifts and regular representations against torch.roll, a composition table and permutation matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_equiv import (
    Cyclic,
    Dihedral,
    Factor,
    Image,
    Invariant,
    Permutation,
    Product,
    Regular,
    Shifted,
    Symmetry,
    as_representation,
)
from tests.contracts import draw, row_of
from tests.helpers import seeded


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# ---- twins -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "shape", "dim"), [(5, (5,), -1), (4, (2, 12, 3), 2), (7, (7, 2), 1), (1, (6,), 1)])
def test_shifted_is_a_roll(n, shape, dim):
    g, x = Cyclic(n).elements(), normal(n, *shape)
    moved, step = Shifted(dim)(g, x), x.shape[dim] // n
    for k in range(n):
        assert torch.equal(moved[k], x[k : k + 1].roll(k * step, dim)[0])
        assert torch.equal(Shifted(dim)(g[k], x), x.roll(k * step, dim))


def test_shifts_of_a_plane_are_a_roll_of_two_dimensions():
    group = Product((Cyclic(12), Cyclic(6)))
    rho = as_representation("Factor(0, Shifted(-2)) @ Factor(1, Shifted(-1))")
    g, x = draw(group, 20), normal(20, 3, 12, 6)
    moved = rho(g, x)
    for i, (a, b) in enumerate(zip(*g.coordinates, strict=True)):
        assert torch.equal(moved[i], x[i].roll((int(a), int(b)), (-2, -1)))
    assert Symmetry("C12 x C6", rho, rho).group == group


def test_a_product_with_one_cyclic_factor_needs_no_factor():
    g, x = draw(Permutation(3) * Cyclic(4), 6), normal(6, 4)
    assert torch.equal(Shifted()(g, x), Shifted()(g.parts[1], x))
    assert torch.equal(Regular()(g, x), Regular()(g.parts[1], x))


@pytest.mark.parametrize("group", [Cyclic(4), Cyclic(1), Dihedral(1), Dihedral(3), Dihedral(4)], ids=str)
def test_regular_is_the_composition_table(group):
    elements, n = group.elements(), group.order
    number = {row_of(h): i for i, h in enumerate(elements)}
    x = normal(n, 2, n)
    moved = Regular()(elements, x)
    for i, j in itertools.product(range(n), range(n)):
        assert torch.equal(moved[i, :, number[row_of(elements[i] @ elements[j])]], x[i, :, j])


def test_regular_of_a_cyclic_group_is_shifted():
    g, x = draw(Cyclic(6), 10), normal(10, 6, 2)
    assert torch.equal(Regular(1)(g, x), Shifted(1)(g, x))


def test_numbers_of_every_kind_are_moved():
    for dtype in (torch.long, torch.bool, torch.float16):
        x = torch.tensor([[1, 0, 0]]).to(dtype)
        for rho in (Shifted(), Regular()):
            assert torch.equal(rho(Cyclic(3).elements()[2], x), torch.tensor([[0, 0, 1]]).to(dtype))


def test_turns_of_feature_maps_are_rot90_and_roll():
    x = normal(1, 2, 4, 5, 5)
    moved = (Image() @ Regular(-3))(Cyclic(4).elements()[1], x)
    assert torch.equal(moved, x.rot90(1, (-2, -1)).roll(1, -3))


# ---- strings and bad input -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rho", [Shifted(), Shifted(2), Regular(), Regular(-3), Image() @ Regular(-3)], ids=repr)
def test_written_as_a_string(rho):
    assert as_representation(repr(rho)) == rho


@pytest.mark.parametrize(
    ("rho", "group", "shape", "message"),
    [
        (Shifted(1), Cyclic(4), (2, 6), r"expects 4 places, or a multiple of it, along dimension 1,.*\(2, 6\)"),
        (Shifted(1), Cyclic(4), (2, 0), "expects 4 places"),
        (Shifted(0), Cyclic(4), (4, 4), "along dimension 0"),
        (Shifted(-2), Cyclic(4), (4, 4), "along dimension -2, after a first dimension that is the batch"),
        (Shifted(2), Cyclic(4), (4, 4), "along dimension 2"),
        (Regular(1), Dihedral(4), (2, 4), "expects 8 components along dimension 1"),
        (Regular(0), Cyclic(4), (4, 4), "along dimension 0"),
    ],
)
def test_shapes_are_checked(rho, group, shape, message):
    with pytest.raises(ValueError, match=message):
        rho(draw(group, 1), torch.ones(shape))


@pytest.mark.parametrize(
    ("rho", "group", "message"),
    [
        (Shifted(1), "SO(3)", r"Shifted\(dim=1\) needs the group Cyclic\(n\), .* got SO\(3\): write Factor"),
        (Shifted(1), "D4", "got D4"),
        (Shifted(1), "C4 x C4", r"write Factor\(i, Shifted\(dim=1\)\) for one of several"),
        (Factor(1, Shifted(1)), "C4 x S3", "got S3"),
        (Regular(1), "S3", r"needs the group Cyclic\(n\) or Dihedral\(n\)"),
        (Regular(1), "C4 x D4", "for one of several"),
    ],
)
def test_a_symmetry_is_refused_when_made(rho, group, message):
    with pytest.raises(ValueError, match=message):
        Symmetry(group, rho, Invariant())
