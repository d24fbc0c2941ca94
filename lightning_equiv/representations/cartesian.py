"""Points in space and tensors with Cartesian indices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.action import apply_matrix, check_dim, check_vectors
from lightning_equiv.representations.representation import Representation


@dataclass(frozen=True)
class Point(Representation):
    """Points in space: rotated and translated, x -> R x + t.

    For directions, velocities and forces take "1o": a translation does not move them.

    Args:
        dim: which dimension holds the coordinates.

    Examples:
        >>> from lightning_equiv import SE3
        >>> Point()(SE3().sample(10), torch.randn(10, 4, 3)).shape
        torch.Size([10, 4, 3])
    """

    dim: int = -1
    acts_through = "matrix"

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        space = x.shape[self.dim]
        return apply_matrix(g.matrix_in(space), x, self.dim, g.translation_in(space))

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        space = x.shape[self.dim]
        return apply_matrix(a.matrix_in(space), x, self.dim, a.translation_in(space))

    def check(self, group: Group, shape: torch.Size) -> None:
        check_vectors(self, group, shape, self.dim)

    def row_size(self, group: Group) -> int | None:
        return group.space_dim


@dataclass(frozen=True)
class CartesianTensor(Representation):
    """Tensors with Cartesian indices in the last `rank` dimensions: stress, polarisability. T -> R T R^T for rank 2.

    Args:
        rank: number of indices.

    Examples:
        >>> from lightning_equiv import SO3
        >>> CartesianTensor(2)(SO3().sample(10), torch.eye(3).repeat(10, 1, 1)).allclose(torch.eye(3), atol=1e-6)
        True
    """

    rank: int = 2
    acts_through = "matrix"

    def __post_init__(self) -> None:
        check_number("rank (a scalar is written Invariant())", self.rank, least=1, whole=True)

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        matrix = g.matrix_in(x.shape[-1])
        for dim in range(-self.rank, 0):
            x = apply_matrix(matrix, x, dim)
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        matrix = a.matrix_in(x.shape[-1])
        return torch.stack([apply_matrix(matrix, x, dim) for dim in range(-self.rank, 0)]).sum(0)

    def check(self, group: Group, shape: torch.Size) -> None:
        check_vectors(self, group, shape, -1)
        for dim in range(-self.rank, -1):
            check_dim(self, shape, dim, shape[-1])

    @property
    def acts_on(self) -> tuple[int, ...]:
        return tuple(range(-self.rank, 0))

    def feature_shape(self, channels: int | None, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        return None

    def of_features(self, dims: tuple[int, ...]) -> Representation:
        return self

    @property
    def row_dims(self) -> int:  # type: ignore[override]
        return self.rank

    def row_size(self, group: Group) -> int | None:
        return None if group.space_dim is None else group.space_dim**self.rank
