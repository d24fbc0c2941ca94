"""Confidence intervals: their coverage where the true value is known, and a bootstrap over inputs."""

from __future__ import annotations

import pytest
import torch

from lightning_equiv import EquivarianceError, Symmetry
from lightning_equiv.metrics.interval import interval, moments, ratio_interval
from tests.helpers import normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


def test_intervals_cover_the_truth_as_often_as_they_say():
    """A linear map with known error: 95 +- 3 % of 400 repetitions, each of 60 inputs with 4 draws."""
    w = normal(3, 3) + 3 * torch.eye(3, dtype=torch.float64)
    trace, antisymmetric = w.trace() / 3, (w - w.mT) / 2
    equivariant = 3 * trace**2  # of SO(3) only multiples of 1 commute with rotations
    assert float(antisymmetric.square().sum()) > 0
    truth = float((2 * (w.square().sum() - equivariant) / w.square().sum()).sqrt())
    x = normal(400, 60, 3, seed=7)
    hits = 0
    for i in range(400):
        metric = EquivarianceError(VECTORS, num_samples=4, seed=i)
        metric.update(lambda x: x @ w.mT, x[i])
        low, high = metric.intervals()["total"][1:]
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_bootstrap_over_inputs_agrees():
    b = normal(500).exp()
    a = b * (1 + 0.3 * normal(500, seed=1)).square()
    value, low, high = ratio_interval(moments(a, b), root=True)
    chosen = torch.randint(500, (4000, 500), generator=seeded())
    again = (a[chosen].sum(1) / b[chosen].sum(1)).sqrt()
    assert float(value) == pytest.approx(float((a.sum() / b.sum()).sqrt()))
    expected = torch.quantile(again, torch.tensor([0.025, 0.975], dtype=again.dtype))
    width = float(high - low)
    assert float(low) == pytest.approx(float(expected[0]), abs=0.1 * width)
    assert float(high) == pytest.approx(float(expected[1]), abs=0.1 * width)


def test_batches_and_ranks_add_up():
    network = lambda x: x + 0.1  # noqa: E731
    x = normal(30, 3)
    whole, parts = (EquivarianceError(Symmetry("C4", "1o", "1o"), num_samples=None) for _ in range(2))
    whole.update(network, x)
    for piece in x.split(7):
        parts.update(network, piece)
    assert parts.intervals()["total"] == pytest.approx(whole.intervals()["total"], rel=1e-6)


def test_one_input_has_no_interval_and_no_error_has_none_to_speak_of():
    value, low, high = interval(torch.tensor([2.0]))
    assert value == 2.0
    assert low != low
    assert high != high
    assert interval(torch.zeros(5), torch.ones(5), root=True) == (0.0, 0.0, 0.0)


def test_the_largest_error_has_no_interval():
    metric = EquivarianceError(VECTORS, kind="max")
    metric.update(lambda x: x + 1, normal(5, 3))
    value, low, _ = metric.intervals()["total"]
    assert value > 0
    assert low != low
