"""How a group element moves one tensor.

A representation rho is called as `rho(g, x)`. The first dimension of x is the batch: row i is moved by element i, or
all rows by the only element. Everything between is along for the ride: x keeps its shape, device and dtype.
`rho.infinitesimal(a, x)` is the derivative d/dt rho(exp(t a)) x at t = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from e3nn import o3
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.action import apply_matrix, check_dim, check_vectors
from lightning_equiv.representations.wigner import rotate_irreps, rotate_irreps_infinitesimal

if TYPE_CHECKING:
    from lightning_equiv.representations.notation import RepresentationLike


class Representation(ABC):
    """How an element moves one tensor; a frozen value, written as a class or as a string (`as_representation`)."""

    acts_through: ClassVar[Literal["matrix", "permutation"] | None] = None
    shared = False  # whether the tensor belongs to the whole call instead of having a row for each input

    def __call__(self, g: GroupElement, x: Tensor) -> Tensor:
        """rho(g) x.

        Args:
            g: one element for each row of x, or a single element for all.
            x: (n, ...).

        Raises:
            ValueError: another number of rows than of elements, or a shape that this representation cannot move.
        """
        if len(g) != 1 and x.shape[:1] != (len(g),):
            raise ValueError(f"expected {len(g)} rows, one for each element, got a tensor of shape {tuple(x.shape)}")
        self.check(g.group, x.shape)
        return self.action(g, x)

    @abstractmethod
    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        """rho(g) x, with rows and shape already checked: what a new representation writes."""

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        """d/dt rho(exp(t a)) x at t = 0.

        Args:
            a: one algebra element for each row of x, or a single one for all.
            x: (n, ...).

        Raises:
            NotImplementedError: this representation does not know its derivative.
        """
        raise NotImplementedError(f"{self!r} does not know its infinitesimal action: write a Representation that does")

    def check(self, group: Group, shape: torch.Size) -> None:  # noqa: B027 (a representation may fit every shape)
        """ValueError unless `group` can move a tensor of this shape in this way."""

    def check_group(self, group: Group) -> None:
        """ValueError unless elements of `group` have what this representation acts through."""
        has_permutation = self.acts_through == "permutation" and group.permutation(group.identity()) is not None
        has = {None: True, "matrix": group.space_dim is not None, "permutation": has_permutation}
        if not has[self.acts_through]:
            raise ValueError(
                f"{self!r} acts through an element's {self.acts_through}, and elements of {group} have not exactly "
                f"one: write Invariant() for what {group} leaves alone, Factor(i, ...) for one factor of a product"
            )

    def __matmul__(self, other: RepresentationLike) -> Composed:
        return Composed(self, parsed(other))


@dataclass(frozen=True)
class IrrepsTensor(Representation):
    """A direct sum of irreducible representations of O(3), in e3nn's layout and convention.

    x = (+)_l x_l, and every x_l of parity p turns with the Wigner matrix D^{l,p}(R), block by block. The groups of the
    plane act as rotations about z and reflections that keep z; translations do not act.

    Args:
        irreps: such as "16x0e+8x1o+4x2e": "0e" a scalar, "0o" a pseudoscalar, "1o" a vector, "1e" a pseudovector.
        dim: which dimension of the tensor holds them; 2 for vector-neuron features (batch, channels, 3, points).

    Examples:
        >>> from lightning_equiv import SO3
        >>> g = SO3().sample(10)
        >>> IrrepsTensor("2x0e+1o")(g, torch.randn(10, 4, 5)).shape
        torch.Size([10, 4, 5])
    """

    irreps: o3.Irreps
    dim: int = -1
    acts_through = "matrix"

    def __post_init__(self) -> None:
        check_number("dim", self.dim, whole=True)
        try:
            object.__setattr__(self, "irreps", o3.Irreps(self.irreps))
        except (ValueError, AssertionError):
            raise ValueError(f"expected irreps such as '16x0e+8x1o', got {self.irreps!r}") from None

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return rotate_irreps(g.matrix_in(3).to(x.device), x, self.irreps, dim=self.dim)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        omega = a.matrix_in(3).to(x.device)
        vector = torch.stack([omega[:, 2, 1], omega[:, 0, 2], omega[:, 1, 0]], dim=-1)
        return rotate_irreps_infinitesimal(vector, x, self.irreps, dim=self.dim)

    def check(self, group: Group, shape: torch.Size) -> None:
        check_dim(self, shape, self.dim, self.irreps.dim)

    def __repr__(self) -> str:
        return f"IrrepsTensor({str(self.irreps)!r}{'' if self.dim == -1 else f', dim={self.dim}'})"


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

    def __post_init__(self) -> None:
        check_number("dim", self.dim, whole=True)

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        space = x.shape[self.dim]
        return apply_matrix(g.matrix_in(space), x, self.dim, g.translation_in(space))

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        space = x.shape[self.dim]
        return apply_matrix(a.matrix_in(space), x, self.dim, a.translation_in(space))

    def check(self, group: Group, shape: torch.Size) -> None:
        check_vectors(self, group, shape, self.dim)


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


@dataclass(frozen=True)
class Permuted(Representation):
    """Things along a dimension change places: (g x)_{g(i)} = x_i.

    Args:
        dim: which dimension counts the things, or several (1, 2) for an adjacency matrix (batch, n, n).

    Examples:
        >>> from lightning_equiv import Permutation
        >>> g = Permutation(3).element(torch.tensor([1, 2, 0]))
        >>> Permuted(1)(g, torch.tensor([[10.0, 11.0, 12.0]]))
        tensor([[12., 10., 11.]])
    """

    dim: int | tuple[int, ...] = 1
    acts_through = "permutation"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", tuple(self.dim) if isinstance(self.dim, list | tuple) else self.dim)
        for dim in self.dims:
            check_number("dim", dim, whole=True)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions as a tuple."""
        return self.dim if isinstance(self.dim, tuple) else (self.dim,)

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        source = g.permutation.argsort(-1).to(x.device)
        for dim in self.dims:
            dim = dim % x.ndim
            index = source.reshape(len(g), *[source.shape[-1] if d == dim else 1 for d in range(1, x.ndim)])
            x = x.gather(dim, index.expand(*[n if d != dim else -1 for d, n in enumerate(x.shape)]))
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def check(self, group: Group, shape: torch.Size) -> None:
        n = group.identity().permutation.shape[-1]
        for dim in self.dims:
            check_dim(self, shape, dim, n)


@dataclass(frozen=True)
class Invariant(Representation):
    """A tensor that no element moves: masses, atomic numbers, class labels.

    Args:
        shared: the tensor has no batch dimension: it belongs to the whole call, like a temperature or a fixed graph,
            and is passed on once however many inputs there are. An input without any dimension always is.

    Examples:
        >>> from lightning_equiv import SO3
        >>> Invariant()(SO3().sample(2), torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    shared: bool = False

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class NodeIndex(Representation):
    """Whole numbers that point at nodes, such as an edge index (2, edges): no element moves them.

    A tensor called `edge_index` needs no such entry.
    """

    shared = True

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Composed(Representation):
    """Two actions one after the other on one tensor: `Permuted(1) @ "1o"` for vectors of interchangeable things.

    The two must commute, as those of different factors of a product do.

    Args:
        outer: acts last.
        inner: acts first.
    """

    outer: Representation
    inner: Representation

    def __post_init__(self) -> None:
        object.__setattr__(self, "outer", parsed(self.outer))
        object.__setattr__(self, "inner", parsed(self.inner))

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return self.outer(g, self.inner(g, x))

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return self.outer.infinitesimal(a, x) + self.inner.infinitesimal(a, x)  # both at the identity

    def check(self, group: Group, shape: torch.Size) -> None:
        self.outer.check(group, shape)
        self.inner.check(group, shape)

    def check_group(self, group: Group) -> None:
        self.outer.check_group(group)
        self.inner.check_group(group)

    def __repr__(self) -> str:
        inner = f"({self.inner!r})" if isinstance(self.inner, Composed) else repr(self.inner)
        return f"{self.outer!r} @ {inner}"


@dataclass(frozen=True)
class Factor(Representation):
    """One factor of a direct product acts: `Factor(0, "1o")` where two factors have matrices.

    Args:
        index: which factor.
        representation: how it acts.
    """

    index: int
    representation: Representation

    def __post_init__(self) -> None:
        check_number("index", self.index, whole=True)
        object.__setattr__(self, "representation", parsed(self.representation))

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return self.representation(g.parts[self.index], x)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return self.representation.infinitesimal(a.parts[self.index], x)

    def check(self, group: Group, shape: torch.Size) -> None:
        self.representation.check(self._factor(group), shape)

    def check_group(self, group: Group) -> None:
        self.representation.check_group(self._factor(group))

    def _factor(self, group: Group) -> Group:
        factors = [part.group for part in group.identity().parts]
        if not -len(factors) <= self.index < len(factors):
            raise ValueError(f"{self!r} names a factor that {group} has not: it has {len(factors)}, counted from 0")
        return factors[self.index]


@dataclass(frozen=True)
class Custom(Representation):
    """Any callable (g, x) -> x' as a representation.

    Args:
        function: the action; it must keep shape, device and dtype.
        derivative: (a, x) -> d/dt at 0, for Lie derivatives.
    """

    function: Callable[[GroupElement, Tensor], Tensor]
    derivative: Callable[[AlgebraElement, Tensor], Tensor] | None = None

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        moved = self.function(g, x)
        if moved.shape != x.shape or moved.dtype != x.dtype:
            raise ValueError(
                f"{self.function!r} changed a tensor of {tuple(x.shape)} {x.dtype} to {tuple(moved.shape)} "
                f"{moved.dtype}: expected an action that keeps shape and dtype"
            )
        return moved

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return super().infinitesimal(a, x) if self.derivative is None else self.derivative(a, x)


def parsed(value: RepresentationLike) -> Representation:
    """`as_representation`, which itself is built on this file."""
    from lightning_equiv.representations.notation import as_representation

    return as_representation(value)
