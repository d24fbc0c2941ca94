"""A batch of group elements, and of elements of a Lie algebra, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_equiv.groups.group import Group

Index = int | slice | Tensor
Batch = TypeVar("Batch", bound="_Batch")


def element_dtype(device: torch.device | str | None) -> torch.dtype:
    """The precision in which elements live: float64, but float32 where a device has no float64 (MPS)."""
    return torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64


@dataclass(frozen=True, eq=False, repr=False)
class _Batch:
    """A group and a batch of its coordinates; never changed after it is made."""

    group: Group
    coordinates: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.coordinates[0].shape[0]

    def __getitem__(self: Batch, index: Index) -> Batch:
        if isinstance(index, Tensor) and index.ndim == 0:
            index = index[None]
        if isinstance(index, int):
            if not -len(self) <= index < len(self):  # this is also what ends `for one in g`
                raise IndexError(f"expected a number from {-len(self)} to {len(self) - 1}, got {index}, in {self!r}")
            index = slice(index, index + 1 or None)
        return replace(self, coordinates=tuple(c[index] for c in self.coordinates))

    def repeat(self: Batch, times: int) -> Batch:
        """The whole batch, `times` times over: (g_1 .. g_n, g_1 .. g_n, ...)."""
        return replace(self, coordinates=tuple(c.repeat(times, *[1] * (c.ndim - 1)) for c in self.coordinates))

    def to(self: Batch, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same elements on another device or in another floating-point precision.

        Args:
            device: where to; None stays.
            dtype: precision of the real coordinates; whole-number coordinates (of finite groups) keep theirs.
        """

        def move(c: Tensor) -> Tensor:
            upload = device is not None and torch.device(device).type == "cuda" and c.device.type == "cpu"
            if upload:
                c = c.pin_memory()  # an unpinned copy would make the host wait for the device
            return c.to(device=device, dtype=dtype if c.is_floating_point() else None, non_blocking=upload)

        return replace(self, coordinates=tuple(move(c) for c in self.coordinates))

    @property
    def device(self) -> torch.device:
        """Where the coordinates lie."""
        return self.coordinates[0].device

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.group!r} on {self.device}>"


class GroupElement(_Batch):
    """A batch of n elements of one group.

    An element batch is an immutable value: it is passed, indexed and composed, never kept between two calls.
    `g[i]` is a batch again, also for a whole number i; `g[index]` with a tensor sends one element per graph to the
    graph's nodes; `g @ h` composes; `len(g)` is n.

    Examples:
        >>> import torch
        >>> from lightning_equiv import SO3
        >>> g = SO3().sample(4, generator=torch.Generator().manual_seed(0))
        >>> len(g), tuple(g.matrix.shape), len(g[torch.tensor([0, 0, 3])])
        (4, (4, 3, 3), 3)
        >>> torch.allclose((g @ g.inverse()).matrix, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
        True
    """

    @property
    def matrix(self) -> Tensor:
        """(n, d, d) orthogonal matrices, acting on column vectors; AttributeError for a group that has none."""
        matrix = self.group.matrix(self)
        if matrix is None:
            raise AttributeError(
                f"elements of {self.group} have no matrix: expected a group that moves points in space"
            )
        return matrix

    @property
    def translation(self) -> Tensor | None:
        """(n, d) translations, applied after the matrix; None for a group without translations."""
        return self.group.translation(self)

    @property
    def permutation(self) -> Tensor:
        """(n, m) permutations, i -> permutation[:, i]; AttributeError for a group that permutes nothing."""
        permutation = self.group.permutation(self)
        if permutation is None:
            raise AttributeError(
                f"elements of {self.group} permute nothing: expected Permutation(n) or a product with it"
            )
        return permutation

    @property
    def parts(self) -> tuple[GroupElement, ...]:
        """The element's factors in a direct product; the element itself in any other group."""
        return self.group.parts(self)

    def matrix_in(self, space: int) -> Tensor:
        """(n, space, space) matrices; a plane's matrix is embedded in space as one that leaves the z axis alone."""
        return embed(self.matrix, space, self.group, one=1.0)

    def translation_in(self, space: int) -> Tensor | None:
        """(n, space) translations, or None."""
        translation = self.translation
        return None if translation is None else torch.nn.functional.pad(translation, (0, space - translation.shape[-1]))

    def inverse(self) -> GroupElement:
        """The inverse of every element."""
        return self.group.inverse(self)

    def __matmul__(self, other: GroupElement) -> GroupElement:
        if not isinstance(other, GroupElement) or other.group != self.group:
            raise ValueError(f"expected elements of one group to compose, got {self!r} and {other!r}")
        g = self.repeat(len(other)) if len(self) == 1 else self
        h = other.repeat(len(g)) if len(other) == 1 else other
        if len(g) != len(h):
            raise ValueError(f"expected as many elements on both sides of @, or one, got {len(self)} and {len(other)}")
        return self.group.compose(g, h)


class AlgebraElement(_Batch):
    """A batch of n elements of a group's Lie algebra: real coefficients of its basis.

    `coefficients` has shape (n, dim). Rotations are in radians, translations in the unit of length of the data.
    """

    @property
    def coefficients(self) -> Tensor:
        """(n, dim) coefficients in the basis that `group.algebra()` lists."""
        return self.coordinates[0]

    @property
    def matrix(self) -> Tensor:
        """(n, d, d) antisymmetric matrices; zero for a finite group that acts on space."""
        matrix = self.group.algebra_matrix(self)
        if matrix is None:
            raise AttributeError(f"the Lie algebra of {self.group} has no matrices")
        return matrix

    @property
    def translation(self) -> Tensor | None:
        """(n, d) velocities of the translation; None for a group without translations."""
        return self.group.algebra_translation(self)

    @property
    def parts(self) -> tuple[AlgebraElement, ...]:
        """The parts in the factors of a direct product; the element itself in any other group."""
        return self.group.algebra_parts(self)

    def matrix_in(self, space: int) -> Tensor:
        """(n, space, space) antisymmetric matrices; a plane's rotation turns about z."""
        return embed(self.matrix, space, self.group, one=0.0)

    def translation_in(self, space: int) -> Tensor | None:
        """(n, space) velocities, or None."""
        translation = self.translation
        return None if translation is None else torch.nn.functional.pad(translation, (0, space - translation.shape[-1]))

    def __mul__(self, scale: float | Tensor) -> AlgebraElement:
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale[:, None]  # one for each element
        return replace(self, coordinates=(self.coefficients * scale,))

    __rmul__ = __mul__

    def exp(self) -> GroupElement:
        """The group elements reached after unit time."""
        return self.group.exp(self)


def embed(matrix: Tensor, space: int, group: Group, one: float) -> Tensor:
    """`matrix` (n, d, d) as one of `space` >= d dimensions, with `one` on the new diagonal."""
    d = matrix.shape[-1]
    if d == space:
        return matrix
    if d > space:
        raise ValueError(
            f"{group} moves vectors of {d} components, but the tensor holds vectors of {space}: "
            f"declare it with another representation, or take a group of the plane (SO(2), C4, D4)"
        )
    matrix = torch.nn.functional.pad(matrix, (0, space - d, 0, space - d))
    if one:
        matrix[..., range(d, space), range(d, space)] = one
    return matrix
