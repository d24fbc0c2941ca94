"""Rotations and reflections of a regular polygon: the cyclic and the dihedral groups."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import (
    AlgebraElement,
    Device,
    Group,
    GroupElement,
    Irreducible,
    element_dtype,
    moved_to,
)
from lightning_equiv.groups.product import register_group
from lightning_equiv.groups.rotation import rotation_2d


@dataclass(frozen=True)
class PolygonGroup(Group):
    """What C_n and D_n share: whole-number coordinates modulo `moduli`."""

    n: int
    space_dim = 2
    dim = 0
    rotates = True

    def __post_init__(self) -> None:
        check_number("n (corners of the polygon)", self.n, least=1, most=2**31, whole=True)

    @property
    @abstractmethod
    def moduli(self) -> tuple[int, ...]:
        """How many values each coordinate takes."""

    @property
    def order(self) -> int:  # type: ignore[override]
        """n for the cyclic, 2 n for the dihedral group."""
        return math.prod(self.moduli)

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.randint(m, (n,), generator=generator, device=device) for m in self.moduli)

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        return GroupElement(self, tuple(torch.zeros(n, dtype=torch.long, device=device) for _ in self.moduli))

    def elements(self, *, device: Device = None) -> GroupElement:
        grid = torch.cartesian_prod(*[torch.arange(m, device=device) for m in reversed(self.moduli)])
        return GroupElement(self, tuple(reversed(grid.reshape(-1, len(self.moduli)).unbind(1))))

    def generators(self, *, device: Device = None) -> GroupElement:
        columns = torch.eye(len(self.moduli), dtype=torch.long, device=device).unbind(1)  # one step of one coordinate
        return GroupElement(self, tuple(c % m for c, m in zip(columns, self.moduli, strict=True)))

    def exp(self, a: AlgebraElement) -> GroupElement:
        return self.identity(len(a), device=a.device)

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        steps = angle * (self.n / (2 * torch.pi))
        if bool(((steps - steps.round()).abs() > 1e-6).any()):
            raise ValueError(
                f"expected multiples of 2 pi / {self.n} = {2 * math.pi / self.n:.6g} radians to turn by in {self}, "
                f"got {float(angle[(steps - steps.round()).abs().argmax()]):.6g}"
            )
        sign = 1 - 2 * torch.randint(2, steps.shape, generator=generator, device=steps.device)
        k = sign * steps.round().long() % self.n
        return GroupElement(self, (k, *[torch.zeros_like(k) for _ in self.moduli[1:]]))

    def angle(self, g: GroupElement) -> Tensor:
        """That of a rotation; pi for a reflection, as its proper part in space, det * matrix, is a half turn."""
        k, *flip = g.coordinates
        angle = torch.minimum(k, self.n - k).to(element_dtype(k.device)) * (2 * torch.pi / self.n)
        return torch.where(flip[0] == 1, torch.pi, angle) if flip else angle

    def modes(self, g: GroupElement) -> Tensor:
        """(n // 2 + 1, m): cos(2 pi j k / n) of the turns by 2 pi k / n, for each Fourier mode j of the polygon."""
        k = g.coordinates[0]
        j = torch.arange(self.n // 2 + 1, device=k.device)[:, None]
        return (2 * torch.pi / self.n * (j * k % self.n).to(element_dtype(k.device))).cos()

    def turn(self, g: GroupElement) -> Tensor:
        """(m, 2, 2) rotations by 2 pi k / n; exact where the entries are whole numbers."""
        k = g.coordinates[0]
        matrix = rotation_2d(2 * torch.pi * k.to(element_dtype(k.device)) / self.n)
        return torch.where((matrix - matrix.round()).abs() < 1e-6, matrix.round(), matrix)


@dataclass(frozen=True)
class Cyclic(PolygonGroup):
    """C_n: rotations of the plane by multiples of 2 pi / n. On vectors of three components: about the z axis.

    Args:
        n: number of rotations.

    Examples:
        >>> Cyclic(4).elements().matrix[1]
        tensor([[ 0., -1.],
                [ 1.,  0.]], dtype=torch.float64)
    """

    @property
    def moduli(self) -> tuple[int, ...]:
        return (self.n,)

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        return GroupElement(self, ((g.coordinates[0] + h.coordinates[0]) % self.n,))

    def inverse(self, g: GroupElement) -> GroupElement:
        return GroupElement(self, (-g.coordinates[0] % self.n,))

    def matrix(self, g: GroupElement) -> Tensor:
        return self.turn(g)

    def irreducibles(self, highest: int) -> list[Irreducible]:
        return [Irreducible(str(m), 2 if 0 < 2 * m < self.n else 1) for m in range(self.n // 2 + 1)]

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        modes = self.modes(g)
        dims = moved_to(torch.tensor([r.dim for r in self.irreducibles(highest)], dtype=modes.dtype), g.device)
        return dims[:, None] * modes  # 2 cos(m a) of a pair of modes +-m; 1 and (-1)^k

    def __str__(self) -> str:
        return f"C{self.n}"


@dataclass(frozen=True)
class Dihedral(PolygonGroup):
    """D_n: the n rotations of C_n and n reflections, r^k s^f with s: y -> -y. 2 n elements.

    Args:
        n: number of rotations.

    Examples:
        >>> len(Dihedral(4).elements())
        8
    """

    @property
    def moduli(self) -> tuple[int, ...]:
        return (self.n, 2)

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        (k, f), (m, e) = g.coordinates, h.coordinates
        return GroupElement(self, ((k + (1 - 2 * f) * m) % self.n, (f + e) % 2))  # s r = r^-1 s

    def inverse(self, g: GroupElement) -> GroupElement:
        k, f = g.coordinates
        return GroupElement(self, ((2 * f - 1) * k % self.n, f))

    def matrix(self, g: GroupElement) -> Tensor:
        turn, f = self.turn(g), g.coordinates[1]
        flip = torch.stack([torch.ones_like(f), 1 - 2 * f], dim=-1)[:, None, :]
        return turn * flip  # R diag(1, -1)^f

    def irreducibles(self, highest: int) -> list[Irreducible]:
        names = ["A1", "A2", "B1", "B2"] if self.n % 2 == 0 else ["A1", "A2"]
        planes = [Irreducible(f"E{m}", 2) for m in range(1, (self.n + 1) // 2)]
        return [Irreducible(name, 1) for name in names] + planes

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        modes, flip = self.modes(g), g.coordinates[1]
        sign = 1 - 2 * flip
        lines = [torch.ones_like(modes[0]), sign.to(modes)]
        if self.n % 2 == 0:
            lines += [modes[-1].round(), modes[-1].round() * sign]  # (-1)^k
        planes = 4 * modes[1 : (self.n + 1) // 2] * (1 - flip)  # d chi = 2 x 2 cos(m a); a reflection has trace 0
        return torch.cat([torch.stack(lines), planes])

    def __str__(self) -> str:
        return f"D{self.n}"


register_group("C4", r"C(\d+)", Cyclic)
register_group("D4", r"D(\d+)", Dihedral)
