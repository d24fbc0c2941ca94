"""How far a branch is from commuting with a group, and how much it contributes: the penalties of constraint relaxation.

    |C|^2 = mean_x sum_i | C_i x |^2     C_i = W drho_in(A_i) - drho_out(A_i) W    A_i a basis of the Lie algebra
                                         C_j = W rho_in(g_j) - rho_out(g_j) W      g_j generators of what is not
                                         connected
    |W|^2 = mean_x | W x |^2

With the second moment M = mean_x x x^T, mean_x |C x|^2 = tr(C M C^T): the matrices C are formed once a step, whatever
the number of rows, and x needs no gradient. A nonlinear branch n takes the derivative of n along drho_in(A_i) x in
place of W drho_in(A_i) x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.branch_networks import LinearBranch
from lightning_equiv.representations.representation import Representation

EPS = 1e-12  # under the roots, whose slope at 0 is infinite


def penalties(branches: Sequence[Branch], group: Group | None) -> tuple[Tensor, Tensor]:
    """(Lie penalty, norm penalty), each a sum over branches of the roots of |C|^2 and |W|^2.

    Args:
        branches: with the inputs of their layers in this step; a layer that did not run adds nothing.
        group: whose action the branches should commute with; None leaves the Lie penalty out (0).
    """
    ran = [b for b in branches if b.inputs]
    if not ran:
        zero = branches[0].theta.new_zeros(())
        return zero, zero
    with torch.autocast(ran[0].theta.device.type, enabled=False):
        squares = [pair for alike in _alike(ran) for pair in _squares(alike, group)]
    lie, norm = torch.stack([square for square, _ in squares]), torch.stack([square for _, square in squares])
    return (lie + EPS).sqrt().sum(), (norm + EPS).sqrt().sum()


def _alike(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Linear branches of equal representations and shapes in one list, to be handled as one; all others alone."""
    groups: dict[object, list[Branch]] = {}
    for b in branches:
        linear = isinstance(b.network, LinearBranch)
        key = (b.layer.inputs, b.layer.outputs, b.layer.in_features, b.layer.out_features) if linear else id(b)
        groups.setdefault(key, []).append(b)
    return list(groups.values())


def _squares(branches: list[Branch], group: Group | None) -> list[tuple[Tensor, Tensor]]:
    """(|C|^2, |W|^2) of every branch."""
    if not isinstance(branches[0].network, LinearBranch):
        return [nonlinear_squares(b, group) for b in branches]
    W = torch.stack([b.network.weight for b in branches])  # type: ignore[misc]
    moments = torch.stack([second_moment(torch.cat([b.rows(x) for x in b.inputs]).to(W.dtype)) for b in branches])
    norm = mean_squares(W, moments)
    if group is None:
        return [(square.new_zeros(()), square) for square in norm]
    layer = branches[0].layer
    assert layer.inputs is not None
    assert layer.outputs is not None
    assert layer.in_features is not None
    assert layer.out_features is not None
    C = commutators(W, layer.inputs, layer.outputs, layer.in_features, layer.out_features, group)
    lie = mean_squares(C.transpose(0, 1).flatten(1, 2), moments)
    return list(zip(lie, norm, strict=True))


def mean_squares(C: Tensor, moments: Tensor) -> Tensor:
    """mean_x | C x |^2 = tr(C M C^T) of stacked matrices C (l, rows, in) and moments M (l, in, in), held constant."""
    squares: Tensor = _MeanSquares.apply(C, moments)  # type: ignore[no-untyped-call]
    return squares


class _MeanSquares(torch.autograd.Function):
    """tr(C M C^T) with its gradient 2 C M: M is symmetric, so that the one product C M serves value and gradient."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, moments: Tensor) -> Tensor:
        CM = C @ moments
        ctx.save_for_backward(CM)
        return (C * CM).sum((-2, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (CM,) = ctx.saved_tensors
        return 2 * gradient[..., None, None] * CM, None


def second_moment(rows: Tensor) -> Tensor:
    """mean_x x x^T (features, features) of rows (n, features)."""
    return rows.mT @ rows / len(rows)


def commutators(
    W: Tensor,
    inputs: Representation,
    outputs: Representation,
    in_features: tuple[int, ...],
    out_features: tuple[int, ...],
    group: Group,
) -> Tensor:
    """C_i and C_j of the head of this file for matrices W (..., out, in), stacked in front: (k, ..., out, in).

    The representations must be orthogonal, so that W rho(g) is rho(g^-1) on the rows of W.
    """
    rows, columns = W.unflatten(-1, in_features), W.mT.unflatten(-1, out_features)
    algebra, generators = actions(group, W)
    found = []
    if len(algebra):
        k = len(algebra)
        left = -inputs.infinitesimal(algebra, rows.expand(k, *rows.shape)).flatten(-len(in_features))
        right = outputs.infinitesimal(algebra, columns.expand(k, *columns.shape)).flatten(-len(out_features))
        found.append(left - right.mT)
    if len(generators):
        k = len(generators)
        left = inputs(generators.inverse(), rows.expand(k, *rows.shape)).flatten(-len(in_features))
        right = outputs(generators, columns.expand(k, *columns.shape)).flatten(-len(out_features))
        found.append(left - right.mT)
    return torch.cat(found)


def nonlinear_squares(branch: Branch, group: Group | None) -> tuple[Tensor, Tensor]:
    """(|C|^2, |n|^2) of a branch that is no matrix, by forward-mode derivatives and by group differences."""
    network, layer = branch.network, branch.layer
    weight = next(network.parameters())
    x = torch.cat([branch.rows(x) for x in branch.inputs]).to(weight.dtype)
    n_x = network(x)
    norm = n_x.square().sum() / _count(n_x)
    if group is None:
        return norm.new_zeros(()), norm
    assert layer.inputs is not None
    assert layer.outputs is not None

    place = 1 if layer.grid else -1  # where the features lie in a row

    def shaped(rows: Tensor, features: tuple[int, ...] | None) -> Tensor:
        return rows.unflatten(place, features or ())

    def flat(x: Tensor, features: tuple[int, ...] | None) -> Tensor:
        return x.flatten(place, len(features or ())) if layer.grid else x.flatten(-len(features or ()))

    algebra, generators = actions(group, x)
    lie = norm.new_zeros(())
    for i in range(len(algebra)):
        tangent = flat(layer.inputs.infinitesimal(algebra[i], shaped(x, layer.in_features)), layer.in_features)
        slope = torch.func.jvp(network, (x,), (tangent,))[1]
        turned = flat(layer.outputs.infinitesimal(algebra[i], shaped(n_x, layer.out_features)), layer.out_features)
        lie = lie + (slope - turned).square().sum() / _count(n_x)
    for i in range(len(generators)):
        n_gx = network(flat(layer.inputs(generators[i], shaped(x, layer.in_features)), layer.in_features))
        g_nx = flat(layer.outputs(generators[i], shaped(n_x, layer.out_features)), layer.out_features)
        lie = lie + (n_gx - g_nx).square().sum() / _count(n_x)
    return lie, norm


def actions(group: Group, like: Tensor) -> tuple[AlgebraElement, GroupElement]:
    """A basis of the algebra, and generators of what is not connected to the identity, on a tensor's device."""
    return group.algebra(device=like.device), group.generators(device=like.device)


def _count(x: Tensor) -> int:
    """Rows of features; for a convolution, every place of the grid is one."""
    return x.numel() // x.shape[1]
