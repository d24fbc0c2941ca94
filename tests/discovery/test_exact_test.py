"""T1: exact under symmetry for any witness, powerful where the symmetry is broken."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest, vonmises

from lightning_equiv import Image, Invariant, Permuted, Symmetry
from lightning_equiv.discovery.candidates import subgroups
from lightning_equiv.discovery.exact_test import exact_test, holm, paired_auc, permutation_p
from lightning_equiv.discovery.orbits import orbits_of
from lightning_equiv.discovery.sample import sample_of

CLOUDS = Symmetry("SO(3)", "1o", Invariant())


def p_values(symmetry, draw, repetitions, witness="features", draws=19, **kwargs):
    found = []
    for k in range(repetitions):
        generator = torch.Generator().manual_seed(k)
        sample = sample_of(draw(generator), symmetry)
        table = orbits_of(sample, subgroups(symmetry)[-1], None, None, k).of_inputs()
        found.append(exact_test(table, witness=witness, draws=draws, seed=k, **kwargs).p)
    return torch.tensor(found, dtype=torch.float64)


def gaussians(n, eps=0.0):
    def draw(generator):
        x = torch.randn(n, 8, 3, generator=generator, dtype=torch.float64)
        x[..., 2] *= 1 + eps
        return x

    return draw


LAWS = {
    "SO(3)": (CLOUDS, gaussians(24)),
    "C4": (
        Symmetry("C4", Image(), Invariant()),
        lambda generator: torch.randn(24, 1, 4, 4, generator=generator, dtype=torch.float64),
    ),
    "S5": (
        Symmetry("S5", Permuted(1), Invariant()),
        lambda generator: torch.rand(24, 5, generator=generator, dtype=torch.float64),
    ),
    "O(3), centred": (
        Symmetry("O(3)", "1o", Invariant()),
        lambda generator: (lambda x: x - x.mean(1, keepdim=True))(gaussians(24)(generator)),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_p_is_uniform_under_symmetry(name):
    """With 19 draws p is one of 20 values: a uniform number below it makes the law continuous."""
    symmetry, draw = LAWS[name]
    p = p_values(symmetry, draw, 100)
    smeared = p - torch.rand(len(p), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 20
    assert kstest(smeared.numpy(), "uniform").pvalue > 1e-3
    assert len(p.unique()) > 10


def test_p_is_uniform_for_an_overfitted_network_and_for_a_constant():
    p = p_values(CLOUDS, gaussians(24), 40, witness="mlp")
    smeared = p - torch.rand(len(p), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 20
    assert kstest(smeared.numpy(), "uniform").pvalue > 1e-3
    generator = torch.Generator().manual_seed(0)
    constant = torch.tensor([permutation_p(torch.ones(30, 9), 19, generator) for _ in range(300)])
    assert (torch.bincount((20 * constant).round().long(), minlength=21)[1:] > 2).all()  # every value comes up
    assert 0.45 < float(constant.mean()) < 0.6


def test_p_counts_as_by_hand():
    scores = torch.tensor([[3.0, 0.0], [2.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    p = permutation_p(scores, 4000, generator)
    assert abs(p - 0.125) < 0.14  # a quarter of the draws are ties, each broken at random
    assert permutation_p(-scores, 4000, generator) > 0.7


@pytest.mark.parametrize(("eps", "least"), [(0.1, 0.75), (0.2, 0.95)])
def test_power_is_that_of_the_published_check(eps, least):
    p = p_values(CLOUDS, gaussians(400, eps), 8, draws=99)
    assert float((p <= 0.05).double().mean()) >= least - 3 * math.sqrt(least * (1 - least) / 8)


def test_auc_is_that_of_a_von_mises_orientation():
    """cos(theta) of an angle with density exp(kappa cos theta) against a uniform one, by numbers of scipy."""
    generator = torch.Generator().manual_seed(0)
    kappa, n = 1.0, 4000
    theta = torch.from_numpy(vonmises.rvs(kappa, size=n, random_state=0))
    turns = 2 * math.pi * torch.rand(n, 15, generator=generator, dtype=torch.float64)
    margin = torch.cat([theta[:, None], theta[:, None] + turns], 1).cos()
    auc, spread = paired_auc(margin)
    grid = torch.linspace(0, math.pi, 4001, dtype=torch.float64)  # P(cos theta > cos theta') = P(|theta| < |theta'|)
    density = torch.exp(kappa * grid.cos())
    density = density / torch.trapezoid(density, grid)
    expected = float(torch.trapezoid(density * (1 - grid / math.pi), grid))
    assert abs(auc - expected) < 4 * spread
    assert 0.002 < spread < 0.01


def test_holm_is_as_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
