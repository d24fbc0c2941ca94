"""The search for the best change of hidden features, against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.relabel import Change, best_change, nearest
from lightning_equiv.representations.linear_maps import LinearMaps
from lightning_equiv.representations.representation import as_representation

N = 5
PLACES, NUMBER = as_representation("Permuted(-1)"), as_representation("Invariant()")
INTO = LinearMaps(PLACES, PLACES, (N,), (N,), as_group("S5"))
OUT_OF = LinearMaps(PLACES, NUMBER, (N,), (1,), as_group("S5"))


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_permutations_equal_brute_force() -> None:
    """300 pairs of maps of S_5, each over all 120 permutations; |P W|^2 by its closed form t^2/n + (s-t)^2/(n(n-1))."""
    orders = torch.tensor(list(itertools.permutations(range(N))))
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        W, a = normal(N, N, generator=generator), normal(1, N, generator=generator)
        all_of_them = W[orders]
        t, s = all_of_them.diagonal(dim1=1, dim2=2).sum(-1), W.sum()
        most = (t**2 / N + (s - t) ** 2 / (N * (N - 1))).max() + N * a.mean() ** 2
        T = best_change(W, a, INTO.project, OUT_OF.project, "permutation", starts=4)
        found = INTO.project(T @ W).square().sum() + OUT_OF.project(a @ T.mT).square().sum()
        torch.testing.assert_close(found, most)


@pytest.mark.parametrize("change", ["permutation", "orthogonal"])
def test_a_hidden_change_is_undone(change: Change) -> None:
    """Maps that commute, their hidden features changed: all of it commutes again after the search."""
    generator = torch.Generator().manual_seed(1)
    A, B = INTO.project(normal(N, N, generator=generator)), OUT_OF.project(normal(1, N, generator=generator))
    Q = nearest(normal(N, N, generator=generator), change)
    T = best_change(Q @ A, B @ Q.mT, INTO.project, OUT_OF.project, change)
    torch.testing.assert_close(T @ T.mT, torch.eye(N, dtype=T.dtype))
    torch.testing.assert_close(INTO.project(T @ Q @ A), T @ Q @ A, atol=1e-5, rtol=0)
    torch.testing.assert_close(OUT_OF.project(B @ Q.mT @ T.mT), B @ Q.mT @ T.mT, atol=1e-5, rtol=0)


def test_maps_that_commute_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    A, B = INTO.project(normal(N, N, generator=generator)), OUT_OF.project(normal(1, N, generator=generator))
    T = best_change(A, B, INTO.project, OUT_OF.project, "permutation")
    torch.testing.assert_close(T, torch.eye(N, dtype=T.dtype))
