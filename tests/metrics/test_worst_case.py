"""The worst case against closed forms and a fine grid."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_equiv import Invariant, Permuted, Point, Symmetry, equivariance_error, worst_case
from lightning_equiv.groups.rotation import rotation_2d
from tests.helpers import close, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


def test_the_largest_error_of_a_shift_is_twice_the_shift():
    """|g c - c| is largest for half a turn about an axis at right angles to c."""
    c = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    worst = worst_case(lambda x: x + c, normal(6, 3), VECTORS, num_samples=8, steps=25, generator=seeded())
    close(worst.errors, torch.full((6,), 2.0), 1e-4)
    assert bool((worst.errors >= worst.sampled).all())
    assert float(worst.sampled.min()) < 1.95, "the ascent had nothing to do"
    close(worst.element.matrix @ c, -c[None], 1e-2)


def test_it_is_no_smaller_than_a_fine_grid_finds():
    symmetry = Symmetry("SO(2)", Point(), Invariant())
    network = lambda x: (3 * x[:, :1]).sin() + x[:, 1:].square()  # noqa: E731
    x = normal(5, 2)
    worst = worst_case(network, x, symmetry, num_samples=16, steps=25, generator=seeded())
    angles = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    grid = equivariance_error(network, x, symmetry, elements=symmetry.group.element(rotation_2d(angles)), kind="max")
    assert bool((worst.errors > grid - 1e-4).all())


def test_its_element_and_input_can_be_used_again():
    network = lambda x: x + 0.1 * x[:, :1] * x[:, 1:2]  # noqa: E731
    x = normal(9, 3)
    worst = worst_case(network, x, VECTORS, generator=seeded())
    again = equivariance_error(network, x, VECTORS, elements=worst.element, kind="absolute")
    assert int(again.argmax()) == worst.index or float(again[worst.index]) == pytest.approx(worst.error)
    assert float(again[worst.index]) == pytest.approx(worst.error, rel=1e-12)


def test_a_finite_group_is_looked_through():
    symmetry, x = Symmetry("S4", Permuted(1), Permuted(1)), normal(3, 4)
    network = lambda x: x.cumsum(1)  # noqa: E731
    worst = worst_case(network, x, symmetry, num_samples=None)
    close(worst.errors, equivariance_error(network, x, symmetry, num_samples=None, kind="max"), 1e-12)
    close(worst.errors, worst.sampled, 1e-15)


def test_translations_ascend_too():
    """f(x) = sin(x_1): the largest |f(x + t) - f(x)| is 1 + |sin x_1|."""
    x = normal(4, 3)
    symmetry = Symmetry("T(3)", Point(), Invariant())
    worst = worst_case(lambda x: x[:, :1].sin(), x, symmetry, num_samples=16, steps=30, generator=seeded())
    close(worst.errors, 1 + x[:, 0].sin().abs(), 1e-3)


def test_an_input_without_a_number_is_not_the_worst():
    x = normal(4, 3)
    x[2] = float("nan")
    worst = worst_case(lambda x: x + 1, x, VECTORS, num_samples=4, steps=2)
    assert worst.index != 2
    assert float(worst.errors[2]) == -1
