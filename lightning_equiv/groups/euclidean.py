"""Rigid motions of space: SE(3) and E(3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.angles import rotation_angle
from lightning_equiv.groups.group import AlgebraElement, Device, Group, GroupElement, element_dtype
from lightning_equiv.groups.product import register_group
from lightning_equiv.groups.rotation import O3, SO3, SpaceGroup, antisymmetric, check_orthogonal, random_orthogonal


@dataclass(frozen=True)
class EuclideanGroup(Group):
    """What SE(3) and E(3) share: x -> R x + t.

    The group is not compact, so no uniform distribution exists: R is Haar-distributed and t ~ N(0, scale^2 I).

    Args:
        scale: standard deviation of each component of a drawn translation, in the unit of length of the data.
    """

    scale: float = 1.0
    space_dim = 3
    dim = 6
    compact = False
    reflections = False
    rotates = True
    translation_dim = 3

    def __post_init__(self) -> None:
        check_number("the translation scale", self.scale, least=0)

    def _name(self, letters: str) -> str:
        return f"{letters}(3)" if self.scale == 1 else f"{letters}(3, scale={self.scale})"

    def element(self, matrix: Tensor, translation: Tensor) -> GroupElement:
        """The elements x -> R x + t, checked.

        Args:
            matrix: (n, 3, 3) or (3, 3), orthogonal.
            translation: (n, 3) or (3,).

        Raises:
            ValueError: as for rotations, or a translation of another shape, or one that is not finite.
        """
        matrix = check_orthogonal(matrix, 3, self.reflections, str(self))
        if translation.shape[-1:] != (3,) or translation.numel() != 3 * len(matrix):
            raise ValueError(f"expected translations of shape ({len(matrix)}, 3), got {tuple(translation.shape)}")
        if not bool(torch.isfinite(translation).all()):
            raise ValueError("expected finite translations, got NaN or infinity")
        return GroupElement(self, (matrix, translation.reshape(-1, 3).to(matrix)))

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        matrix = random_orthogonal(n, 3, self.reflections, generator, device)
        shift = torch.randn(n, 3, generator=generator, device=device, dtype=matrix.dtype)
        return matrix, self.scale * shift

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        dtype = dtype or element_dtype(device)
        eye = torch.eye(3, device=device, dtype=dtype).repeat(n, 1, 1)
        return GroupElement(self, (eye, torch.zeros(n, 3, device=device, dtype=dtype)))

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        (r, t), (s, u) = g.coordinates, h.coordinates
        return GroupElement(self, (r @ s, (r @ u[..., None])[..., 0] + t))

    def inverse(self, g: GroupElement) -> GroupElement:
        r, t = g.coordinates
        return GroupElement(self, (r.mT, -(r.mT @ t[..., None])[..., 0]))

    def matrix(self, g: GroupElement) -> Tensor:
        return g.coordinates[0]

    def translation(self, g: GroupElement) -> Tensor:
        return g.coordinates[1]

    @property
    def linear_part(self) -> SpaceGroup:
        return O3() if self.reflections else SO3()

    def embed(self, g: GroupElement) -> GroupElement:
        return GroupElement(self, (g.matrix, g.matrix.new_zeros(len(g), 3)))

    def shift(self, t: Tensor) -> GroupElement:
        return GroupElement(self, (self.identity(len(t), device=t.device, dtype=t.dtype).matrix, t))

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        return self.embed(self.linear_part.turn_by(angle, generator))

    def angle(self, g: GroupElement) -> Tensor:
        return rotation_angle(g.matrix)

    def algebra_matrix(self, a: AlgebraElement) -> Tensor:
        return antisymmetric(a.coefficients[..., :3])

    def algebra_translation(self, a: AlgebraElement) -> Tensor:
        return a.coefficients[..., 3:]

    def exp(self, a: AlgebraElement) -> GroupElement:
        omega_v = torch.cat([a.matrix, self.algebra_translation(a)[..., None]], dim=-1)  # (n, 3, 4): [Omega, v]
        motion = torch.linalg.matrix_exp(torch.nn.functional.pad(omega_v, (0, 0, 0, 1)))
        return GroupElement(self, (motion[..., :3, :3], motion[..., :3, 3]))


@dataclass(frozen=True)
class SE3(EuclideanGroup):
    """Rotations and translations of space; see `EuclideanGroup` for `scale`.

    Examples:
        >>> g = SE3(scale=20.0).sample(5)
        >>> g.matrix.shape, g.translation.shape
        (torch.Size([5, 3, 3]), torch.Size([5, 3]))
    """

    def __str__(self) -> str:
        return self._name("SE")


@dataclass(frozen=True)
class E3(EuclideanGroup):
    """Rotations, reflections and translations of space; see `EuclideanGroup` for `scale`.

    Examples:
        >>> E3().sample(5).translation.shape
        torch.Size([5, 3])
    """

    reflections = True

    def generators(self, *, device: Device = None) -> GroupElement:
        matrix, translation = self.identity(device=device).coordinates
        return GroupElement(self, (-matrix, translation))

    def __str__(self) -> str:
        return self._name("E")


_SCALE = r"\(?3(?:,\s*scale=(\d+\.?\d*(?:e[+-]?\d+)?))?\)?"
register_group("SE(3)", "SE" + _SCALE, SE3)
register_group("E(3)", "E" + _SCALE, E3)
