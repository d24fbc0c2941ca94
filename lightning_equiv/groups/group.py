"""What a group is, and batches of its elements and of elements of its Lie algebra, as values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_equiv._random import private_generator

Device = torch.device | str | None
Index = int | slice | Tensor
Batch = TypeVar("Batch", bound="_Batch")


def element_dtype(device: torch.device | str | None) -> torch.dtype:
    """The precision in which elements live: float64, but float32 where a device has no float64 (MPS)."""
    return torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64


class Irreducible(NamedTuple):
    """One irreducible real representation: its name, its dimension, and minus the Laplacian's eigenvalue on it."""

    name: str
    dim: int
    casimir: float = 0.0


class Group(ABC):
    """A group: how its elements are drawn, composed and inverted.

    A group is a frozen value. It is written as a class (`SO3()`) or as a string (`"SO(3)"`), see `as_group`.

    Attributes:
        dim: dimension of its Lie algebra; 0 for a finite group.
        order: number of its elements; None for an infinite group.
        compact: whether a uniform (Haar) distribution exists on it.
        space_dim: dimension of the vectors that its matrices move; None for a group without matrices.
        rotates: whether it has rotations by an angle, see `turns` and `angle`.
        translation_dim: dimension of its translations; None for a group without.
    """

    dim: int
    order: int | None = None
    compact: bool = True
    space_dim: int | None = None
    rotates: bool = False
    translation_dim: int | None = None
    product_type: ClassVar[type]  # set where `Product` is defined, which builds on groups

    # ---- what every group defines -------------------------------------------------------------------------------
    @abstractmethod
    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        """Coordinates of n Haar-distributed elements, drawn on `device` by `generator`."""

    @abstractmethod
    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        """The neutral element, n times."""

    @abstractmethod
    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        """g h: first h acts, then g; element by element."""

    @abstractmethod
    def inverse(self, g: GroupElement) -> GroupElement:
        """The inverse of every element."""

    @abstractmethod
    def exp(self, a: AlgebraElement) -> GroupElement:
        """Exponential map of the Lie algebra into the group."""

    @abstractmethod
    def __str__(self) -> str:
        """The name that `as_group` understands, where it has one."""

    def matrix(self, g: GroupElement) -> Tensor | None:
        """(n, d, d) orthogonal matrices of g, or None."""
        return None

    def translation(self, g: GroupElement) -> Tensor | None:
        """(n, d) translations of g, or None."""
        return None

    def permutation(self, g: GroupElement) -> Tensor | None:
        """(n, m) permutations of g, or None."""
        return None

    def parts(self, g: GroupElement) -> tuple[GroupElement, ...]:
        """The factors of g in a direct product."""
        return (g,)

    def algebra_parts(self, a: AlgebraElement) -> tuple[AlgebraElement, ...]:
        """The parts of a in the factors of a direct product."""
        return (a,)

    def algebra_matrix(self, a: AlgebraElement) -> Tensor | None:
        """(n, d, d) antisymmetric matrices of a; zero where the group has matrices but no algebra."""
        return None if self.space_dim is None else a.coefficients.new_zeros(len(a), self.space_dim, self.space_dim)

    def algebra_translation(self, a: AlgebraElement) -> Tensor | None:
        """(n, d) translational part of a, or None."""
        return None

    @property
    def linear_part(self) -> Group | None:
        """What is left without the translations: the group itself where it has none; None if nothing is left."""
        return self

    def embed(self, g: GroupElement) -> GroupElement:
        """Elements of `linear_part` as elements of this group."""
        return g

    def shift(self, t: Tensor) -> GroupElement:
        """The translations by t (n, translation_dim)."""
        raise ValueError(f"{self} has no translations: expected T(n), SE(3), E(3) or a product with one of them")

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        """Rotations by `angle` (n,) in radians about axes drawn uniformly; drawn where `angle` lies."""
        raise ValueError(f"{self} has no rotations: expected a group such as SO(2), SO(3), SE(3), C4 or D4")

    def angle(self, g: GroupElement) -> Tensor:
        """(n,) rotation angles in [0, pi]."""
        raise ValueError(f"{self} has no rotations: expected elements of a group such as SO(2), SO(3), SE(3), C4 or D4")

    def irreducibles(self, highest: int) -> list[Irreducible]:
        """The irreducible representations, the trivial one first; those of an infinite group up to `highest`."""
        raise ValueError(f"the irreducible representations of {self} are not known: define `irreducibles`, `kernels`")

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        """(number of irreducibles, n) reproducing kernels at g, see `Harmonics`."""
        raise ValueError(f"the irreducible representations of {self} are not known: define `irreducibles`, `kernels`")

    def grid(self, degree: int) -> tuple[GroupElement, Tensor]:
        """Elements and weights that integrate what `quadrature` promises; all elements of a finite group."""
        elements = self.elements()
        return elements, torch.full((len(elements),), 1 / len(elements), dtype=torch.float64)

    # ---- what every group inherits ----------------------------------------------------------------------------------
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> GroupElement:
        """n independent elements from the Haar measure.

        Args:
            n: how many; at least 1.
            generator: whose random numbers. The draw is made on the generator's device and then moved, so that the
                same generator gives the same elements everywhere. None: a private generator that follows
                `seed_everything`; the global generator is never touched.
            device: where the elements will lie.
            dtype: precision of the real coordinates; float64 by default.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"expected at least one element of {self} to draw, got n={n} (an empty batch?)")
        generator = generator if generator is not None else private_generator()
        device = generator.device if device is None else device
        coordinates = self.draw(n, generator, generator.device)
        return GroupElement(self, coordinates).to(device, dtype or element_dtype(device))

    def elements(self, *, device: Device = None) -> GroupElement:
        """All elements of a finite group, the identity first.

        Raises:
            ValueError: the group is infinite.
        """
        raise ValueError(f"{self} has infinitely many elements: draw some with `sample(n)` instead")

    def generators(self, *, device: Device = None) -> GroupElement:
        """Elements that generate the group together with what is connected to the identity.

        None for a connected group; the inversion for O(3); a turn (and a flip) for a polygon. What commutes with the
        algebra and with these commutes with the group.
        """
        return self.identity(0, device=device)

    def algebra(self, *, device: Device = None, dtype: torch.dtype | None = None) -> AlgebraElement:
        """The standard basis of the Lie algebra: `dim` elements, none for a finite group."""
        return AlgebraElement(self, (torch.eye(self.dim, device=device, dtype=dtype or element_dtype(device)),))

    def __mul__(self, other: Group) -> Group:
        product: Group = self.product_type((self, other))
        return product


def moved_to(x: Tensor, device: Device, dtype: torch.dtype | None = None) -> Tensor:
    """`x.to(device, dtype)`, where the host does not wait for a GPU: an unpinned copy would make it wait."""
    upload = device is not None and torch.device(device).type == "cuda" and x.device.type == "cpu"
    return (x.pin_memory() if upload else x).to(device=device, dtype=dtype, non_blocking=upload)


@dataclass(frozen=True, eq=False, repr=False)
class _Batch:
    """A group and a batch of its coordinates; never changed after it is made."""

    group: Group
    coordinates: tuple[Tensor, ...]
    _along_z: ClassVar[float]  # what a matrix of the plane does to the z axis of space

    def __len__(self) -> int:
        return self.coordinates[0].shape[0]

    def __getitem__(self: Batch, index: Index) -> Batch:
        if isinstance(index, Tensor) and index.ndim == 0:
            index = index[None]
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"expected a number from {-len(self)} to {len(self) - 1}, got {index}, in {self!r}")
            index = slice(index, index + 1 or None)
        return replace(self, coordinates=tuple(c[index] for c in self.coordinates))

    def __iter__(self: Batch) -> Iterator[Batch]:
        """Its elements one by one, each a batch of one."""
        return (self[i] for i in range(len(self)))

    def repeat(self: Batch, times: int) -> Batch:
        """The whole batch, `times` times over: (g_1 .. g_n, g_1 .. g_n, ...)."""
        return replace(self, coordinates=tuple(c.repeat(times, *[1] * (c.ndim - 1)) for c in self.coordinates))

    def to(self: Batch, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same elements on another device or in another floating-point precision.

        Args:
            device: where to; None stays.
            dtype: precision of the real coordinates; whole-number coordinates (of finite groups) keep theirs.
        """
        return replace(
            self,
            coordinates=tuple(moved_to(c, device, dtype if c.is_floating_point() else None) for c in self.coordinates),
        )

    @property
    def device(self) -> torch.device:
        """Where the coordinates lie."""
        return self.coordinates[0].device

    @property
    def matrix(self) -> Tensor:
        """(n, d, d) matrices that act on column vectors."""
        raise NotImplementedError

    @property
    def translation(self) -> Tensor | None:
        """(n, d) translations, or None."""
        raise NotImplementedError

    def matrix_in(self, space: int) -> Tensor:
        """(n, space, space) matrices: those of a plane leave the z axis alone."""
        matrix, d = self.matrix, self.matrix.shape[-1]
        if d > space:
            raise ValueError(
                f"{self.group} moves vectors of {d} components, but the tensor holds vectors of {space}: "
                f"declare it with another representation, or take a group of the plane (SO(2), C4, D4)"
            )
        if d < space:
            matrix = torch.nn.functional.pad(matrix, (0, space - d, 0, space - d))
            # no index by lists: these would be sent to the device, and the host would wait for it
            matrix.diagonal(dim1=-2, dim2=-1)[..., d:].fill_(self._along_z)
        return matrix

    def translation_in(self, space: int) -> Tensor | None:
        """(n, space) translations, or None."""
        translation = self.translation
        return None if translation is None else torch.nn.functional.pad(translation, (0, space - translation.shape[-1]))

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

    _along_z = 1.0

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

    _along_z = 0.0

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

    def __mul__(self, scale: float | Tensor) -> AlgebraElement:
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale[:, None]  # one for each element
        return replace(self, coordinates=(self.coefficients * scale,))

    __rmul__ = __mul__

    def exp(self) -> GroupElement:
        """The group elements reached after unit time."""
        return self.group.exp(self)
