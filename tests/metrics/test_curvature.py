"""The largest eigenvalue of a Hessian, against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv.metrics.curvature import largest_eigenvalue
from tests.helpers import global_seed, normal


def dense_eigenvalues(loss_of: nn.Module, net: nn.Module) -> Tensor:
    """All eigenvalues, from torch.autograd.functional.hessian of the parameters in one vector."""
    parameters = dict(net.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(flat.split(sizes), parameters.values(), strict=True)]
        return loss_of(torch.func.functional_call(net, dict(zip(parameters, parts, strict=True)), normal(20, 3)))

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))


@pytest.mark.parametrize("sign", [1, -1])
def test_against_the_dense_hessian(sign: int) -> None:
    """Of a small network, also where the loss bends downwards more than upwards."""
    with global_seed(0):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def loss_of(y: Tensor) -> Tensor:
        return sign * nn.functional.mse_loss(y, normal(20, 2, seed=1))

    eigenvalues = dense_eigenvalues(loss_of, net)
    expected, parameters, found = eigenvalues[-1], list(net.parameters()), []
    assert (expected > -eigenvalues[0]) == (sign > 0)
    v = normal(sum(p.numel() for p in parameters), seed=2)
    for _ in range(30):  # goes on from where it was, four products at a time
        value, v = largest_eigenvalue(loss_of(net(normal(20, 3))), parameters, v, steps=4)
        found.append(float(value))
    assert found == sorted(found, key=lambda x: round(x, 12))
    assert found[0] < 0.96 * expected
    assert found[-1] == pytest.approx(float(expected), rel=1e-6)
    assert v.norm() == pytest.approx(1)
    assert all(p.grad is None for p in parameters)


def test_as_many_products_as_dimensions_are_exact() -> None:
    H = normal(5, 5)
    H = H + H.T
    p = normal(5, seed=1).requires_grad_()
    value, v = largest_eigenvalue(p @ H @ p / 2, [p], normal(5, seed=2), steps=9)
    eigenvalues, vectors = torch.linalg.eigh(H)
    torch.testing.assert_close(value, eigenvalues[-1])
    assert (v @ vectors[:, -1]).abs() == pytest.approx(1)


def test_parameters_that_the_loss_does_not_depend_on_or_is_linear_in() -> None:
    a, b, c = (normal(2, seed=i).requires_grad_() for i in range(3))
    loss = (3 * a.square()).sum() + b.sum()
    value, v = largest_eigenvalue(loss, [a, b, c], normal(6, seed=4), steps=2)
    assert value == pytest.approx(6)
    assert v[2:].abs().max() < 1e-12


def test_a_flat_loss_leaves_the_vector_where_it_is() -> None:
    b, start = normal(2).requires_grad_(), normal(2, seed=1)
    value, v = largest_eigenvalue(b.sum(), [b], start)
    assert value == 0
    torch.testing.assert_close(v.abs(), (start / start.norm()).abs())


def test_what_is_not_finite_leaves_the_vector_where_it_is() -> None:
    b, start = normal(2).requires_grad_(), normal(2, seed=1)
    value, v = largest_eigenvalue(torch.inf * b.square().sum(), [b], start)
    assert value.isnan()
    assert torch.equal(v, start)
