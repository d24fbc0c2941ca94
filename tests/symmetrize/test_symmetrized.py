"""Averages over a group: what each rule is exact for, against closed forms and slow loops."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    SO3,
    Invariant,
    Permutation,
    Permuted,
    Point,
    Symmetrized,
    Symmetry,
    equivariance_error,
    symmetry_share,
)
from lightning_equiv.symmetrize.rules import Rule, rule_of, subgroup_matrices
from tests.helpers import close, global_seed, normal

SCALARS = Symmetry("SO(3)", "1o", Invariant())
VECTORS = Symmetry("SO(3)", "1o", "1o")
NUMBER = {"tetrahedral": 12, "octahedral": 24, "icosahedral": 60}


def mlp(n_in: int = 3, n_out: int = 3, seed: int = 0) -> nn.Module:
    with global_seed(seed):
        return nn.Sequential(nn.Linear(n_in, 16), nn.Tanh(), nn.Linear(16, n_out)).double()


class Cloud(nn.Module):
    """Five points to vectors, no symmetry."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = mlp(15, 15, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)).unflatten(1, (5, 3))


def polynomial(degree: int):
    """A product of affine functions, which has every degree up to that."""
    w, b = normal(degree, 3, seed=1), normal(degree, seed=2)
    return lambda x: (x @ w.T + b).prod(-1, keepdim=True)


def error(network, x, symmetry, **kwargs) -> float:
    kwargs.setdefault("num_samples", 8)
    return float(equivariance_error(network, x, symmetry, kind="max", **kwargs).max())


# ---- what a rule is exact for ------------------------------------------------------------------------------------
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_a_quadrature_is_exact_to_its_degree_and_no_further(degree) -> None:
    x = normal(4, 3)
    exact = error(Symmetrized(polynomial(degree), SCALARS, degree=degree), x, SCALARS)
    assert exact < 1e-12 * max(1.0, float(polynomial(degree)(x).abs().max()))
    assert error(Symmetrized(polynomial(degree + 1), SCALARS, degree=degree), x, SCALARS) > 1e-4


@pytest.mark.parametrize(("subgroup", "degree"), [("tetrahedral", 2), ("octahedral", 3), ("icosahedral", 5)])
def test_a_subgroup_is_exact_to_its_degree_and_no_further(subgroup, degree) -> None:
    x = normal(4, 3)
    assert error(Symmetrized(polynomial(degree), SCALARS, subgroup=subgroup), x, SCALARS) < 1e-12
    assert error(Symmetrized(polynomial(degree + 1), SCALARS, subgroup=subgroup), x, SCALARS) > 1e-4


@pytest.mark.parametrize("subgroup", NUMBER)
def test_the_rotations_of_a_solid_are_a_group(subgroup) -> None:
    matrices = subgroup_matrices(subgroup)
    assert len(matrices) == NUMBER[subgroup]
    close(torch.linalg.det(matrices), torch.ones(len(matrices)))
    close(matrices[0], torch.eye(3))
    distances = torch.cdist(matrices.flatten(1), matrices.flatten(1))
    assert float((distances + 9 * torch.eye(len(matrices))).min()) > 0.5  # all different
    products = (matrices[:, None] @ matrices).flatten(0, 1).flatten(1)
    assert float(torch.cdist(products, matrices.flatten(1)).amin(1).max()) < 1e-7


@pytest.mark.parametrize("group", ["SO(3)", "O(3)"])
@pytest.mark.parametrize("subgroup", NUMBER)
def test_an_average_over_a_subgroup_is_equivariant_to_it_for_any_network(group, subgroup) -> None:
    symmetry = Symmetry(group, "1o", "1o")
    matrix = subgroup_matrices(subgroup)
    elements = symmetry.group.element(torch.cat([matrix, -matrix]) if group == "O(3)" else matrix)
    x = normal(3, 5, 3)
    assert error(Cloud(), x, symmetry, num_samples=None, elements=elements) > 0.1
    assert error(Symmetrized(Cloud(), symmetry, subgroup=subgroup), x, symmetry, elements=elements) < 1e-13


@pytest.mark.parametrize("group", ["C4", "C7", "D4", "D3", "S4", "C4 x S3"])
def test_an_average_over_a_finite_group_is_equivariant(group) -> None:
    permuted = "S" in group
    rep = Permuted(1) if permuted else "1o"
    symmetry = Symmetry(
        group, rep if "x" not in group else Permuted(1) @ "1o", rep if "x" not in group else Permuted(1) @ "1o"
    )
    size = 3 if group == "C4 x S3" else 4
    x = normal(3, size, 3)

    def network(x: Tensor) -> Tensor:
        return (x * normal(size, 3, seed=1) + 1).tanh().cumsum(1)

    assert error(network, x, symmetry, num_samples=None) > 0.1
    assert error(Symmetrized(network, symmetry), x, symmetry, num_samples=None) < 1e-13


def test_equal_turns_of_the_plane_are_exact_to_their_number_less_one() -> None:
    symmetry = Symmetry("SO(2)", Point(), Invariant())
    w, b = normal(4, 2, seed=1), normal(4, seed=2)
    x = normal(5, 2)
    assert error(Symmetrized(lambda x: (x @ w.T + b).prod(-1, keepdim=True), symmetry, degree=4), x, symmetry) < 1e-13
    assert error(Symmetrized(lambda x: (x @ w.T + b).prod(-1, keepdim=True), symmetry, degree=3), x, symmetry) > 1e-3


def test_of_a_linear_map_the_commutant_is_left_and_of_a_low_rule_what_it_does_not_integrate() -> None:
    weight, x = normal(3, 3, seed=3), normal(6, 3)
    close(Symmetrized(lambda x: x @ weight.T, VECTORS)(x), weight.trace() / 3 * x)
    rule = rule_of(SO3(), degree=1)
    assert isinstance(rule, Rule)
    turned = sum(w * r.T @ weight @ r for w, r in zip(rule.weights, rule.elements.matrix, strict=True))
    assert float((turned - weight.trace() / 3 * torch.eye(3)).norm()) > 0.1
    close(Symmetrized(lambda x: x @ weight.T, VECTORS, degree=1)(x), x @ turned.T)


def test_an_average_is_the_loop_that_its_formula_says() -> None:
    network, x = Cloud(), normal(3, 5, 3)
    expected = [
        torch.stack([network((xi @ r.T)[None])[0] @ r for r in subgroup_matrices("octahedral")]).mean(0) for xi in x
    ]
    close(Symmetrized(network, VECTORS)(x), torch.stack(expected))


# ---- a projection ------------------------------------------------------------------------------------------------
def test_it_is_idempotent_linear_and_leaves_equivariant_networks_alone() -> None:
    f, h, x = Cloud(0), Cloud(1), normal(3, 5, 3)
    pi = Symmetrized(f, VECTORS, subgroup="icosahedral")
    close(Symmetrized(pi, VECTORS, subgroup="icosahedral")(x), pi(x))
    both = Symmetrized(lambda x: 2 * f(x) - h(x), VECTORS, subgroup="icosahedral")
    close(both(x), 2 * pi(x) - Symmetrized(h, VECTORS, subgroup="icosahedral")(x))
    close(Symmetrized(lambda x: x * x.norm(dim=(1, 2), keepdim=True), VECTORS)(x), x * x.norm(dim=(1, 2), keepdim=True))


def test_squared_errors_split_into_that_of_the_average_and_the_variance() -> None:
    symmetry = Symmetry("C4", "1o", "1o")
    network, x, y = mlp(), normal(7, 3), normal(7, 3, seed=5)
    share = symmetry_share(network, x, symmetry, y, num_samples=None)
    averaged = (Symmetrized(network, symmetry)(x) - y).square().mean()
    g = symmetry.group.elements()
    oriented = torch.stack([(network(x @ m.T) - y @ m.T).square().mean() for m in g.matrix_in(3)]).mean()
    assert share.averaged == pytest.approx(float(averaged.detach()), rel=1e-12)
    assert share.oriented == pytest.approx(float(oriented.detach()), rel=1e-12)
    assert share.oriented == pytest.approx(share.averaged + share.variance, rel=1e-12)
    assert share.share == pytest.approx(share.variance / share.oriented)
    assert share.num_inputs == 7
    assert "symmetry error" in str(share)


def test_the_share_of_draws_is_unbiased_and_its_standard_error_is_that_of_repetitions() -> None:
    shift = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    found = []
    for seed in range(40):
        x = normal(60, 3, seed=seed)
        noise = 0.4 * normal(60, 3, seed=100 + seed)
        generator = torch.Generator().manual_seed(seed)
        found.append(symmetry_share(lambda x: x + shift, x, VECTORS, x + noise, num_samples=4, generator=generator))
    shares = torch.tensor([s.share for s in found])
    truth = 0.09 / (0.09 + 3 * 0.16)  # per input: |shift|^2 against that and the noise
    assert abs(float(shares.mean()) - truth) < 4 * float(shares.std()) / 40**0.5 + 2e-3
    said = sum(s.standard_error for s in found) / 40
    assert 0.7 * said < float(shares.std()) < 1.4 * said


def test_cross_entropy_of_averaged_probabilities_is_at_most_the_average() -> None:
    symmetry = Symmetry("C4", "1o", Invariant())
    network, x = nn.Sequential(mlp(3, 4), nn.Softmax(-1)), normal(20, 3)
    averaged = -Symmetrized(network, symmetry)(x)[:, 1].log()
    every = torch.stack([-network(x @ m.T)[:, 1].log() for m in symmetry.group.elements().matrix_in(3)]).mean(0)
    assert bool((averaged <= every + 1e-12).all())
    assert float((every - averaged).detach().max()) > 1e-3


# ---- draws -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", [4, 16, 64])
def test_draws_are_unbiased_and_their_variance_falls_as_one_over_their_number(m) -> None:
    n, x = 4000, torch.tensor([[0.0, 3.0, 4.0]], dtype=torch.float64)
    symmetrized = Symmetrized(lambda x: (x[:, :1] / 5).square(), SCALARS, num_samples=m)
    mean, deviation, standard_error = symmetrized.spread(x.expand(n, 3))
    variance = 1 / 5 - 1 / 9  # of cos^2 on the sphere
    assert abs(float(mean.mean()) - 1 / 3) < 4 * (variance / m / n) ** 0.5
    assert abs(float(mean.var()) / (variance / m) - 1) < 4 * (3 / n) ** 0.5
    assert abs(float(deviation.square().mean()) / variance - 1) < 4 * (3 / n) ** 0.5
    close(standard_error, deviation / m**0.5)
    other = symmetrized(x.expand(n, 3))
    assert not torch.equal(other, mean)  # drawn anew
    again = Symmetrized(lambda x: (x[:, :1] / 5).square(), SCALARS, num_samples=m)
    close(again(x.expand(n, 3)), mean)  # from the seed
    close(again(x.expand(n, 3)), other)


def test_draws_do_not_depend_on_chunks_nor_touch_the_global_generator() -> None:
    x, before = normal(10, 3), torch.get_rng_state()
    found = [Symmetrized(mlp(), VECTORS, num_samples=9, chunk_size=size)(x) for size in (None, 20, 1, "auto")]
    for other in found[1:]:
        close(other, found[0])
    assert bool((before == torch.get_rng_state()).all())


def test_a_turned_rule_is_unbiased_where_a_fixed_one_is_not() -> None:
    n, x = 4000, normal(1, 3, seed=4)
    fixed = Symmetrized(polynomial(2), SCALARS, degree=1)
    truth = Symmetrized(polynomial(2), SCALARS, degree=4)(x)
    turned = Symmetrized(polynomial(2), SCALARS, degree=1, randomise=True)(x.expand(n, 3))
    assert abs(float(turned.mean() - truth)) < 4 * float(turned.std()) / n**0.5
    close(Symmetrized(polynomial(2), SCALARS, degree=2, randomise=True)(x.expand(9, 3)), truth.expand(9, 1))
    assert abs(float(fixed(x) - truth)) > 20 * float(turned.std()) / n**0.5


def test_large_permutation_groups_are_drawn_from() -> None:
    symmetry = Symmetry(Permutation(9), Permuted(1), Invariant())
    weights = normal(9)
    symmetrized = Symmetrized(lambda x: x @ weights[:, None], symmetry, num_samples=400)
    x = normal(3, 9)
    truth = x.mean(1, keepdim=True) * weights.sum()
    mean, _, deviation = symmetrized.spread(x)
    assert bool(((mean - truth).abs() < 4 * deviation).all())
    assert Symmetrized(lambda x: x, symmetry).num_calls == 32


# ---- the degree that is enough -----------------------------------------------------------------------------------
def test_the_degree_is_doubled_until_it_is_enough() -> None:
    x = normal(5, 3)
    symmetrized = Symmetrized(polynomial(4), SCALARS)
    tried = symmetrized.choose_degree(x, tolerance=1e-9)
    assert [t.degree for t in tried] == [1, 2, 4]
    assert tried[-1].change < 1e-9 < tried[0].change
    assert symmetrized.num_calls == tried[-1].calls == 75
    assert error(symmetrized, x, SCALARS) < 1e-12
    with pytest.raises(ValueError, match="no degree to choose"):
        Symmetrized(mlp(), Symmetry("C4", "1o", "1o")).choose_degree(x)


# ---- what it is as a module --------------------------------------------------------------------------------------
def test_it_has_the_networks_weights_and_nothing_else() -> None:
    symmetrized = Symmetrized(mlp(), VECTORS)
    assert set(symmetrized.state_dict()) == {f"network.{key}" for key in mlp().state_dict()}
    x = normal(4, 3)
    other = Symmetrized(mlp(seed=1), VECTORS)
    other.load_state_dict(symmetrized.state_dict())
    close(other(x), symmetrized(x))
    close(copy.deepcopy(symmetrized)(x), symmetrized(x))
    close(pickle.loads(pickle.dumps(symmetrized))(x), symmetrized(x))


def test_elements_keep_their_precision_when_the_network_does_not() -> None:
    symmetrized = Symmetrized(mlp(), VECTORS, subgroup="icosahedral")
    x = normal(6, 3)
    exact = symmetrized(x)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)):
        low = copy.deepcopy(symmetrized).to(dtype)
        assert low.method.coordinates_0.dtype == torch.float64
        y = low(x.to(dtype))
        assert y.dtype == dtype
        close(y, exact, tolerance)


def test_it_trains_and_one_element_a_step_is_unbiased() -> None:
    network, x = mlp(), normal(1, 3).expand(3000, 3)
    symmetrized = Symmetrized(network, VECTORS, stochastic=True)
    calls = []
    network.register_forward_hook(lambda m, a, y: calls.append(len(y)))
    one = symmetrized.train()(x)
    assert sum(calls) == 3000
    close(symmetrized.eval()(x[:1]), Symmetrized(network, VECTORS)(x[:1]))
    assert bool(((one.mean(0) - symmetrized(x[:1])[0]).abs() < 4 * one.std(0) / 3000**0.5).all())
    one.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())


# ---- bad input ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "framed"}, "expected method to be one of"),
        ({"subgroup": "cubic"}, "expected subgroup to be one of"),
        ({"subgroup": "octahedral", "degree": 3}, "one of subgroup, degree and num_samples"),
        ({"num_samples": 0}, "expected num_samples"),
        ({"method": "frame"}, r"write points=\.\.\."),
        ({"method": "weighted_frame"}, r"write points=\.\.\."),
        ({"method": "frame", "points": "positions"}, "names no input"),
        ({"chunk_size": "large"}, "expected chunk_size"),
    ],
)
def test_what_it_cannot_do_it_says(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        Symmetrized(mlp(), VECTORS, **arguments)


def test_translations_need_points() -> None:
    with pytest.raises(ValueError, match=r"not compact.*centring"):
        Symmetrized(mlp(), Symmetry("SE(3)", "1o", "1o"))
    with pytest.raises(ValueError, match="do not move"):
        Symmetrized(mlp(), Symmetry("SE(3)", "1o", "1o"), points=0)
    with pytest.raises(ValueError, match=r"is for SO\(2\), SO\(3\)"):
        Symmetrized(mlp(), Symmetry("C4", Point(), "1o"), "frame")
    with pytest.raises(ValueError, match="needs a group with one matrix"):
        Symmetrized(mlp(), Symmetry("S3", Permuted(1), Invariant()), "frame", points=0)
    with pytest.raises(ValueError, match="rotations of space"):
        Symmetrized(mlp(), Symmetry("C4", "1o", "1o"), subgroup="octahedral")
    with pytest.raises(ValueError, match="there is no mean"):
        Symmetrized(lambda x: x.argmax(-1), SCALARS)(normal(3, 3))
    with pytest.raises(ValueError, match=r"changes .* in place"):
        Symmetrized(lambda x: x.relu_(), Symmetry("C4", Invariant(), Invariant()), chunk_size=1)(normal(3, 3))
    with pytest.raises(TypeError, match="expected a network"):
        Symmetrized(3, SCALARS)


def test_other_ranks_draw_other_elements_and_take_the_same_rules(monkeypatch) -> None:
    x = normal(4, 3)
    drawn, fixed = (Symmetrized(mlp(), VECTORS, **kw)(x) for kw in ({"num_samples": 5}, {}))
    monkeypatch.setattr("lightning_equiv.symmetrize.symmetrized.process_rank", lambda: 1)
    assert not torch.allclose(Symmetrized(mlp(), VECTORS, num_samples=5)(x), drawn)
    close(Symmetrized(mlp(), VECTORS)(x), fixed)


def test_the_page_runs_as_it_stands(capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "symmetrize.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    space: dict[str, Any] = {}
    for block in blocks:
        exec(block, space)
    assert "Exactness(degree=1" in capsys.readouterr().out
    x = torch.randn(6, 3)
    assert error(space["averaged"], x, VECTORS) < error(space["net"], x, VECTORS)
    assert space["callback"].settings == {"subgroup": "icosahedral"}
