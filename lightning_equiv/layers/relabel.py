"""The change of hidden features under which most of two neighbouring maps commutes with a group.

    T* = argmax_T  |P(T A)|^2 + |P'(A' T^-1)|^2       A into the hidden features, A' out of them, P and P' projections
                                                      onto maps that commute; T a permutation, or an orthogonal matrix

A network whose hidden features are relabelled by T is the same network; its nearest equivariant one is another. The
objective is convex in T, so that maximising its slope, by a linear assignment or by the polar factor (Procrustes),
never lowers it; this is repeated from several starts, the identity and random directions in what commutes.

Reference:
    @inproceedings{ainsworth2023git,
      title={Git Re-Basin: Merging Models modulo Permutation Symmetries},
      author={Ainsworth, Samuel and Hayase, Jonathan and Srinivasa, Siddhartha},
      booktitle={International Conference on Learning Representations}, year={2023}, note={arXiv:2209.04836}}
    @inproceedings{xie2025tale,
      title={A Tale of Two Symmetries: Exploring the Loss Landscape of Equivariant Models},
      author={Xie, YuQing and Smidt, Tess}, booktitle={Advances in Neural Information Processing Systems}, year={2025},
      note={arXiv:2506.02269}}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Change = Literal["permutation", "orthogonal"]
Project = Callable[[Tensor], Tensor]

_MOST_STEPS = 100


def best_change(
    into: Tensor, out_of: Tensor, project_into: Project, project_out_of: Project, change: Change, starts: int = 32
) -> Tensor:
    """The matrix T (hidden, hidden) that lets most of both maps commute.

    Args:
        into: A, (hidden * places, inputs): `places` is 1, or what a kernel reaches.
        out_of: A', (outputs, hidden).
        project_into: P.
        project_out_of: P'.
        change: what T may be.
        starts: random directions from which the search begins, besides the identity.

    Examples:
        >>> mean = lambda W: W.mean() * torch.ones_like(W)
        >>> T = best_change(torch.eye(2), torch.eye(2), mean, mean, "permutation")
        >>> T.shape
        torch.Size([2, 2])
    """
    hidden = out_of.shape[1]
    A = into.reshape(hidden, -1, into.shape[1])
    identity = torch.eye(hidden, dtype=into.dtype)
    generator = torch.Generator().manual_seed(0)

    def commuting(T: Tensor) -> tuple[Tensor, Tensor]:
        return project_into((T @ A.flatten(1)).reshape(into.shape)), project_out_of(out_of @ T.mT)

    def slope(first: Tensor, second: Tensor) -> Tensor:
        return first.reshape(hidden, -1) @ A.flatten(1).mT + second.mT @ out_of

    def random_start() -> Tensor:
        noise = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (into, out_of))
        first, second = (project(x) for project, x in zip((project_into, project_out_of), noise, strict=True))
        return nearest(slope(first, second), change)

    best, most = identity, -1.0
    for start in [identity, *(random_start() for _ in range(starts))]:
        T, value = start, -1.0
        for _ in range(_MOST_STEPS):
            parts = commuting(T)
            after = float(sum(part.square().sum() for part in parts))
            if after <= value * (1 + 1e-12):
                break
            if after > most * (1 + 1e-9):  # of equals the first
                best, most = T, after
            value, T = after, nearest(slope(*parts), change)
    return best


def nearest(G: Tensor, change: Change) -> Tensor:
    """The permutation matrix or orthogonal matrix T with the largest <T, G>."""
    if change == "permutation":
        rows, columns = linear_sum_assignment(G.numpy(), maximize=True)
        T = torch.zeros_like(G)
        T[torch.from_numpy(rows), torch.from_numpy(columns)] = 1
        return T
    U, _, V = torch.linalg.svd(G)
    return U @ V
