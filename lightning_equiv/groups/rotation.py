"""Rotations of the plane and of space: SO(2), SO(3), O(3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.angles import plane_angle, rotation_angle
from lightning_equiv.groups.group import AlgebraElement, Device, Group, GroupElement, Irreducible, element_dtype
from lightning_equiv.groups.harmonics import cosines
from lightning_equiv.groups.product import register_group
from lightning_equiv.groups.quadrature import circle_rule, quaternion_rule


class OrthogonalGroup(Group):
    """What the groups of orthogonal matrices share: an element is its matrix."""

    space_dim: int
    reflections: bool = False
    rotates = True

    @property
    def dim(self) -> int:  # type: ignore[override]
        """d (d - 1) / 2: one angle in the plane, three in space."""
        return self.space_dim * (self.space_dim - 1) // 2

    def element(self, matrix: Tensor) -> GroupElement:
        """The elements whose matrices are given, checked.

        Args:
            matrix: (n, d, d) or (d, d), orthogonal, acting on column vectors.

        Raises:
            ValueError: wrong shape, not finite, not orthogonal, or a reflection where the group has none.
        """
        return GroupElement(self, (check_orthogonal(matrix, self.space_dim, self.reflections, str(self)),))

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        return (random_orthogonal(n, self.space_dim, self.reflections, generator, device),)

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        eye = torch.eye(self.space_dim, device=device, dtype=dtype or element_dtype(device))
        return GroupElement(self, (eye.repeat(n, 1, 1),))

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        return GroupElement(self, (g.coordinates[0] @ h.coordinates[0],))

    def inverse(self, g: GroupElement) -> GroupElement:
        return GroupElement(self, (g.coordinates[0].mT,))

    def matrix(self, g: GroupElement) -> Tensor:
        return g.coordinates[0]

    def algebra_matrix(self, a: AlgebraElement) -> Tensor:
        return antisymmetric(a.coefficients)

    def exp(self, a: AlgebraElement) -> GroupElement:
        return GroupElement(self, (torch.linalg.matrix_exp(a.matrix),))


@dataclass(frozen=True)
class SO2(OrthogonalGroup):
    """Rotations of the plane, counter-clockwise from x to y. On vectors of three components: about the z axis.

    Examples:
        >>> SO2().sample(5).matrix.shape
        torch.Size([5, 2, 2])
    """

    space_dim = 2

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        sign = 1 - 2 * torch.randint(2, angle.shape, generator=generator, device=angle.device)
        return GroupElement(self, (rotation_2d(sign * angle),))

    def angle(self, g: GroupElement) -> Tensor:
        return plane_angle(g.matrix).abs()

    def irreducibles(self, highest: int) -> list[Irreducible]:
        return [Irreducible(str(m), 2 if m else 1, m * m) for m in range(highest + 1)]

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        modes = cosines(self.angle(g), highest)
        return torch.cat([modes[:1], 2 * modes[1:]])

    def grid(self, degree: int) -> tuple[GroupElement, Tensor]:
        angle, weights = circle_rule(degree)
        return GroupElement(self, (rotation_2d(angle),)), weights

    def __str__(self) -> str:
        return "SO(2)"


class SpaceGroup(OrthogonalGroup):
    """What SO(3) and O(3) share: rotations of space, and the degrees of functions on them."""

    space_dim = 3

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        axis = torch.randn(len(angle), 3, generator=generator, device=angle.device, dtype=angle.dtype)
        half = angle[:, None] / 2
        q = torch.cat([half.cos(), half.sin() * axis / axis.norm(dim=-1, keepdim=True)], dim=-1)
        return GroupElement(self, (quaternion_to_matrix(q),))

    def angle(self, g: GroupElement) -> Tensor:
        return rotation_angle(g.matrix)

    def irreducibles(self, highest: int) -> list[Irreducible]:
        parities = ("e", "o") if self.reflections else ("",)
        return [Irreducible(f"{j}{p}", 2 * j + 1, j * (j + 1)) for j in range(highest + 1) for p in parities]

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        modes = cosines(self.angle(g), highest)
        dims = 2 * torch.arange(highest + 1, device=modes.device)[:, None] + 1
        found = dims * (2 * modes.cumsum(0) - 1)  # (2J+1) (1 + 2 cos a + .. + 2 cos(J a))
        if not self.reflections:
            return found
        parity = torch.linalg.det(g.matrix).sign().to(found)
        return torch.stack([found, found * parity], dim=1).flatten(0, 1)

    def grid(self, degree: int) -> tuple[GroupElement, Tensor]:
        q, weights = quaternion_rule(degree)
        matrix = quaternion_to_matrix(q)
        if self.reflections:
            matrix, weights = torch.cat([matrix, -matrix]), torch.cat([weights, weights]) / 2
        return GroupElement(self, (matrix,)), weights


@dataclass(frozen=True)
class SO3(SpaceGroup):
    """Rotations of space.

    Haar elements are normalised Gaussian quaternions. Basis of the Lie algebra: the rotations about x, y, z.

    Examples:
        >>> g = SO3().sample(5)
        >>> torch.allclose(torch.linalg.det(g.matrix), torch.ones(5, dtype=torch.float64))
        True
    """

    def __str__(self) -> str:
        return "SO(3)"


@dataclass(frozen=True)
class O3(SpaceGroup):
    """Rotations and reflections of space: a rotation, times the inversion with probability one half.

    Examples:
        >>> sorted(set(torch.linalg.det(O3().sample(64).matrix).round().tolist()))
        [-1.0, 1.0]
    """

    reflections = True

    def generators(self, *, device: Device = None) -> GroupElement:
        return GroupElement(self, (-self.identity(device=device).matrix,))

    def __str__(self) -> str:
        return "O(3)"


def random_orthogonal(
    n: int, space: int, reflections: bool, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """(n, space, space) Haar-distributed orthogonal matrices in float64; proper ones unless `reflections`."""
    dtype = element_dtype(device)
    if space == 2:
        angle = 2 * torch.pi * torch.rand(n, generator=generator, device=device, dtype=dtype)
        matrix = rotation_2d(angle)
    else:
        matrix = quaternion_to_matrix(torch.randn(n, 4, generator=generator, device=device, dtype=dtype))
    if reflections:
        sign = 1 - 2 * torch.randint(2, (n, 1, 1), generator=generator, device=device)
        matrix = matrix * sign
    return matrix


def rotation_2d(angle: Tensor) -> Tensor:
    """(..., 2, 2) counter-clockwise rotations by `angle` (...) in radians."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """(..., 3, 3) rotation matrices of quaternions (w, x, y, z) of any length: R v = q v q^-1."""
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def antisymmetric(omega: Tensor) -> Tensor:
    """(..., 1) angles to (..., 2, 2), or (..., 3) rotation vectors to (..., 3, 3): Omega v = omega x v."""
    if omega.shape[-1] == 1:
        zero = torch.zeros_like(omega)
        return torch.cat([zero, -omega, omega, zero], dim=-1).unflatten(-1, (2, 2))
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def check_orthogonal(matrix: Tensor, space: int, reflections: bool, group: str) -> Tensor:
    """`matrix` as (n, space, space); ValueError unless it is orthogonal (and proper, without `reflections`)."""
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        got = getattr(matrix, "dtype", type(matrix).__name__)
        raise TypeError(f"expected a real torch.Tensor of matrices of {group}, got {got}")
    if matrix.ndim not in (2, 3) or matrix.shape[-2:] != (space, space) or not len(matrix):
        raise ValueError(
            f"expected matrices of {group} of shape ({space}, {space}) or (n, {space}, {space}), "
            f"got {tuple(matrix.shape)}"
        )
    matrix = matrix.reshape(-1, space, space)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"expected finite matrices of {group}, got NaN or infinity")
    off = (matrix @ matrix.mT - torch.eye(space, dtype=matrix.dtype, device=matrix.device)).abs().amax()
    if float(off) > min(20 * torch.finfo(matrix.dtype).eps ** 0.75, 0.05):  # 0.05: what bfloat16 rounds away
        raise ValueError(
            f"expected orthogonal matrices of {group}, got one with |R R^T - 1| = {float(off):.2g}: "
            "orthogonalise it first, e.g. U @ Vh from torch.linalg.svd(R)"
        )
    if not reflections and bool((torch.linalg.det(matrix.double()) < 0).any()):
        raise ValueError(f"expected rotations (determinant 1) for {group}, got a reflection: O(3) has those")
    return matrix


register_group("SO(2)", r"SO\(?2\)?", SO2)
register_group("SO(3)", r"SO\(?3\)?", SO3)
register_group("O(3)", r"O\(?3\)?", O3)
