"""Canonical poses: given, learned, searched; checked once, and kept near the training's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    GroupElement,
    Invariant,
    OptimisedCanonicaliser,
    Point,
    Symmetrized,
    Symmetry,
    equivariance_error,
    gram_schmidt,
)
from tests.helpers import close, global_seed, normal

VECTORS = Symmetry("SO(3)", "1o", "1o")


def network(x: Tensor) -> Tensor:
    return (x * normal(5, 3, seed=2).to(x) + 1).tanh().cumsum(1)


def error(f, x, symmetry, **kwargs) -> float:
    return float(equivariance_error(f, x, symmetry, kind="max", **kwargs).max())


class Learned(nn.Module):
    """Two equivariant vectors with learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(normal(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return gram_schmidt(torch.einsum("ka,nad->nkd", self.mix, x), reflections=False)


def test_a_learned_pose_is_trained_and_kept_near_the_datas() -> None:
    canonicaliser = Learned()
    symmetrized = Symmetrized(network, VECTORS, canonicaliser)
    x = normal(40, 5, 3) * torch.tensor([0.1, 0.1, 0.1]) + normal(5, 3, seed=7)
    assert error(symmetrized, x, VECTORS) < 1e-12
    assert set(symmetrized.state_dict()) == {"canonicaliser.mix"}
    poses = canonicaliser(x)
    close(symmetrized.prior_loss(x), (poses - torch.eye(3)).square().sum((1, 2)).mean())
    optimizer = torch.optim.Adam(symmetrized.parameters(), lr=0.05)
    first = float(symmetrized.prior_loss(x).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = symmetrized.prior_loss(x)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * first
    symmetrized(x).square().sum().backward()
    assert error(symmetrized, x, VECTORS) < 1e-10


def test_a_pose_of_group_elements_under_translations() -> None:
    symmetry = Symmetry("SE(3)", Point(), Point())

    def pose(x: Tensor) -> GroupElement:
        q = x - x[:, :1]
        matrix = gram_schmidt(q[:, 1:3], reflections=False)
        return GroupElement(symmetry.group, (matrix, x[:, 0]))

    x = normal(4, 5, 3)
    assert error(Symmetrized(network, symmetry, pose), x, symmetry) < 1e-11
    linear = lambda x: pose(x).matrix  # noqa: E731
    assert error(Symmetrized(network, symmetry, linear), x, symmetry) < 1e-11


def test_a_pose_that_does_not_turn_with_the_input_is_refused_once() -> None:
    calls = []

    def pose(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.eye(3, dtype=x.dtype).expand(len(x), 3, 3)

    with pytest.raises(ValueError, match="not equivariant"):
        Symmetrized(network, VECTORS, pose)(normal(4, 5, 3))
    good = Symmetrized(network, VECTORS, lambda x: calls.append(0) or gram_schmidt(x, reflections=False))
    calls.clear()
    for _ in range(3):
        good(normal(4, 5, 3))
    assert len(calls) == 2 + 3
    with pytest.raises(ValueError, match="expected the canonicaliser to give 4 elements"):
        Symmetrized(network, VECTORS, lambda x: x[:, :2])(normal(4, 5, 3))


@pytest.mark.parametrize("group", ["C4", "D4", "O(3)", "SO(3)"])
def test_a_searched_pose_is_exact_under_the_group_that_is_listed(group) -> None:
    symmetry = Symmetry(group, "1o", "1o")
    score = lambda x: (x * normal(5, 3, seed=4)).sum((1, 2))  # noqa: E731
    canonicaliser = OptimisedCanonicaliser(score, symmetry)
    x = normal(6, 5, 3)
    elements = canonicaliser.rule.elements
    assert error(network, x, symmetry, num_samples=None, elements=elements) > 0.1
    symmetrized = Symmetrized(network, symmetry, canonicaliser).eval()
    assert error(symmetrized, x, symmetry, num_samples=None, elements=elements) < 1e-13
    best = torch.stack([score(x @ m) for m in elements.matrix_in(3)]).max(0).values
    turned = torch.einsum("nij,naj->nai", canonicaliser(x).inverse().matrix_in(3), x)
    close(score(turned), best)


def test_steps_of_ascent_make_a_search_exact_under_a_continuous_group() -> None:
    target, x = normal(5, 3, seed=4), normal(6, 5, 3)
    score = lambda x: (x * target).sum((1, 2))  # noqa: E731
    coarse = OptimisedCanonicaliser(score, VECTORS)
    fine = OptimisedCanonicaliser(score, VECTORS, steps=60)
    assert error(Symmetrized(network, VECTORS, coarse).eval(), x, VECTORS) > 0.1
    assert error(Symmetrized(network, VECTORS, fine).eval(), x, VECTORS) < 1e-3
    u, s, v = torch.linalg.svd(x.mT @ target)  # the best turn of x onto the target: Kabsch
    sign = torch.linalg.det(u @ v).sign()
    best = s[:, 0] + s[:, 1] + sign * s[:, 2]
    turned = torch.einsum("nij,naj->nai", fine(x).inverse().matrix, x)
    close(score(turned), best, 1e-5)


def test_gradients_reach_scores_straight_through() -> None:
    symmetry = Symmetry("C4", "1o", "1o")
    with global_seed():
        score = nn.Sequential(nn.Flatten(), nn.Linear(15, 1)).double()
    symmetrized = Symmetrized(network, symmetry, OptimisedCanonicaliser(score, symmetry))
    x = normal(6, 5, 3)
    training = symmetrized.train()(x)
    close(training, symmetrized.eval()(x))  # the same pose, at four calls
    training.square().sum().backward()
    assert float(score[1].weight.grad.abs().sum()) > 0
    prior = symmetrized.prior_loss(x)
    scores = torch.stack([score(x @ m) for m in symmetry.group.elements().matrix_in(3)])[..., 0]
    close(prior, -scores.log_softmax(0)[0].mean())


def test_what_canonical_poses_cannot_do_they_say() -> None:
    with pytest.raises(ValueError, match="prior_loss is of canonical poses"):
        Symmetrized(network, VECTORS).prior_loss(normal(4, 5, 3))
    with pytest.raises(ValueError, match="compact"):
        OptimisedCanonicaliser(lambda x: x, Symmetry("SE(3)", Point(), Point()))
    with pytest.raises(ValueError, match="too many elements to search"):
        OptimisedCanonicaliser(lambda x: x, Symmetry("S9", Invariant(), Invariant()))
    with pytest.raises(ValueError, match="nothing to ascend"):
        OptimisedCanonicaliser(lambda x: x, Symmetry("C4", "1o", "1o"), steps=3)
    with pytest.raises(ValueError, match="one score for each"):
        OptimisedCanonicaliser(lambda x: x, VECTORS)(normal(4, 5, 3))
    with pytest.raises(ValueError, match="needs method='average'"):
        Symmetrized(network, VECTORS, "frame", points=0).spread(normal(4, 5, 3))
