"""Shifts of the plane and of space: T(2), T(3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Device, Group, GroupElement, element_dtype
from lightning_equiv.groups.product import register_group


@dataclass(frozen=True)
class Translation(Group):
    """Shifts x -> x + t of points in n dimensions. `Point()` is shifted, directions ("1o") are left alone.

    The group is not compact, so no uniform distribution exists: t ~ N(0, scale^2 I).

    Args:
        n: dimensions, 2 or 3.
        scale: standard deviation of each component of a drawn translation, in the unit of length of the data.

    Examples:
        >>> from lightning_equiv import Point
        >>> g = Translation(3).element(torch.tensor([0.0, 0.0, 2.0]))
        >>> Point()(g, torch.zeros(1, 4, 3))[0, 0]
        tensor([0., 0., 2.])
    """

    n: int
    scale: float = 1.0
    compact = False

    def __post_init__(self) -> None:
        check_number("n (dimensions)", self.n, least=2, most=3, whole=True)
        check_number("the translation scale", self.scale, least=0)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.n

    @property
    def space_dim(self) -> int:  # type: ignore[override]
        return self.n

    @property
    def translation_dim(self) -> int:  # type: ignore[override]
        return self.n

    @property
    def linear_part(self) -> None:
        return None

    def shift(self, t: Tensor) -> GroupElement:
        return GroupElement(self, (t,))

    def element(self, translation: Tensor) -> GroupElement:
        """The elements x -> x + t, checked.

        Args:
            translation: (m, n) or (n,), finite.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        if not translation.is_floating_point() or translation.ndim not in (1, 2) or translation.shape[-1] != self.n:
            raise ValueError(
                f"expected real translations of shape ({self.n},) or (m, {self.n}), got "
                f"{tuple(translation.shape)} {translation.dtype}"
            )
        if not bool(torch.isfinite(translation).all()):
            raise ValueError("expected finite translations, got NaN or infinity")
        return GroupElement(self, (translation.reshape(-1, self.n),))

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        t = torch.randn(n, self.n, generator=generator, device=device, dtype=element_dtype(device))
        return (self.scale * t,)

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        return GroupElement(self, (torch.zeros(n, self.n, device=device, dtype=dtype or element_dtype(device)),))

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        return GroupElement(self, (g.coordinates[0] + h.coordinates[0],))

    def inverse(self, g: GroupElement) -> GroupElement:
        return GroupElement(self, (-g.coordinates[0],))

    def exp(self, a: AlgebraElement) -> GroupElement:
        return GroupElement(self, (a.coefficients,))

    def matrix(self, g: GroupElement) -> Tensor:
        t = g.coordinates[0]
        return torch.eye(self.n, device=t.device, dtype=t.dtype).expand(len(g), -1, -1)

    def translation(self, g: GroupElement) -> Tensor:
        return g.coordinates[0]

    def algebra_translation(self, a: AlgebraElement) -> Tensor:
        return a.coefficients

    def __str__(self) -> str:
        return f"T({self.n})" if self.scale == 1 else f"T({self.n}, scale={self.scale})"


register_group("T(3)", r"T\(?([23])(?:,\s*scale=(\d+\.?\d*(?:e[+-]?\d+)?))?\)?", Translation)
