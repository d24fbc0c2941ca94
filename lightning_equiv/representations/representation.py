"""How a group element moves one tensor: what a representation is, how two are combined, how one is written.

A representation rho is called as `rho(g, x)`. The first dimension of x is the batch: row i is moved by element i, or
all rows by the only element. The dimensions between are left as they are: x keeps its shape, device and dtype.
`rho.infinitesimal(a, x)` is the derivative d/dt rho(exp(t a)) x at t = 0.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement


@dataclass(frozen=True, eq=False)
class Copies:
    """Features that move alike, each by itself: several copies of one representation.

    Attributes:
        representation: of one copy.
        shape: of a copy's features.
        places: (copies, numbers of one), where they lie among the flattened features.
    """

    representation: Representation
    shape: tuple[int, ...]
    places: Tensor

    @property
    def size(self) -> int:
        """How many numbers one copy has."""
        return self.places.shape[1]


class Representation(ABC):
    """How an element moves one tensor; a frozen value, written as a class or as a string (`as_representation`).

    What the rest of the library asks of a tensor it asks of its representation: a new one overrides the answers that
    differ.

    Attributes:
        acts_through: which part of an element it needs; None for none, or for more than one.
        dim: the dimension of the tensor along which it acts, or several.
        trivial: no element moves the tensor.
        shared: the tensor belongs to the whole call instead of having a row for each input.
        per: what its rows belong to, where that is said: a "node", an "edge", a "graph" or the whole "call".
        rows: how many each of them has.
        points_at: its entries are numbers of nodes, edges or graphs, which move up where graphs are repeated.
        bounds: its entries are where each graph's nodes begin, and the last one's end.
        ignored: nobody looks at the tensor.
        part_names: of `parts`.
        row_dims: how many trailing dimensions of a tensor hold what one element moves.
        written: its repr is read back by `as_representation`.
    """

    acts_through: ClassVar[Literal["matrix", "permutation"] | None] = None
    dim: int | tuple[int, ...] = -1
    trivial: bool = False
    shared: bool = False
    per: Literal["node", "edge", "graph", "call"] | None = None
    rows: int = 1
    points_at: ClassVar[Literal["node", "edge", "graph"] | None] = None
    bounds: ClassVar[bool] = False
    ignored: ClassVar[bool] = False
    row_dims: int = 1
    written: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for dim in self.dims:
            check_number("dim", dim, whole=True)

    @property
    def dims(self) -> tuple[int, ...]:
        """`dim` as a tuple."""
        return self.dim if isinstance(self.dim, tuple) else (self.dim,)

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

    # ---- how it acts ---------------------------------------------------------------------------------------------
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

    def contract(self, weight: Tensor, g: GroupElement, x: Tensor, times: int, matrices: dict[Any, Tensor]) -> Tensor:
        """W rho(g) x, (times n, width), for `times` elements of every row.

        Args:
            weight: (width, numbers) W.
            g: times n elements; element k n + i moves row i for the k-th time.
            x: `(n, *row)` with as many numbers in a row.
            times: how often every row is moved.
            matrices: of g; kept between calls with the same elements.
        """
        again = x.repeat(times, *[1] * (x.ndim - 1))
        return nn.functional.linear(self(g, again).flatten(1), weight)

    # ---- what it can move ----------------------------------------------------------------------------------------
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

    # ---- what a tensor is made of --------------------------------------------------------------------------------
    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts that move independently of each other; "" is the whole tensor."""
        return ("",)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """The parts of x (rows, ...), by the names of `part_names`."""
        return {"": x}

    def row_size(self, group: Group) -> int | None:
        """How many numbers of a tensor one element moves together; None where only the tensor tells."""
        return None

    def num_owners(self, x: Tensor) -> int:
        """How many inputs, nodes or edges x has rows of."""
        return len(x) // self.rows

    def repeated(self, x: Tensor, times: int, step: int) -> Tensor:
        """Whole numbers that point at nodes or the like, their graphs `times` times over, each time `step` higher."""
        return torch.cat([x + i * step for i in range(times)], dim=-1)

    # ---- the features of a layer ---------------------------------------------------------------------------------
    @property
    def acts_on(self) -> tuple[int, ...]:
        """The dimensions of a tensor along which it acts."""
        return self.dims

    @property
    def feature_dims(self) -> tuple[int, ...]:
        """The dimensions of a layer's tensor that hold its features: where it acts, and the channels beside that."""
        dims = self.acts_on
        if -1 in dims or len(dims) > 1:
            return dims
        return (dims[0] - 1, dims[0]) if dims[0] > 1 else (dims[0], dims[0] + 1)

    def feature_shape(self, channels: int | None, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the features of a layer with so many channels, in these dimensions; None where a call tells."""
        return None if channels is None or len(dims) > 1 else (channels,)

    def of_features(self, dims: tuple[int, ...]) -> Representation:
        """The same action on a tensor `(rows, *features)`, whose features lie in these dimensions of a tensor."""
        if len(dims) == 1 or self.trivial:
            return self
        places = tuple(dims.index(dim) - len(dims) for dim in self.dims)
        if places == self.dims:
            return self
        moved: Any = self
        return cast("Representation", replace(moved, dim=places if isinstance(self.dim, tuple) else places[0]))

    def copies(self, features: tuple[int, ...]) -> list[Copies]:
        """What features of this shape, in `(rows, *features)`, fall into: channels are copies of one another."""
        n = len(features) + 1
        own = sorted({dim % n - 1 for dim in self.acts_on} if not self.trivial else ())
        places = torch.arange(math.prod(features)).reshape(features)
        channels = [dim for dim in range(len(features)) if dim not in own]
        size = math.prod(features[dim] for dim in own)
        shape = tuple(features[dim] if dim in own else 1 for dim in range(len(features)))
        return [Copies(self, shape, places.permute(*channels, *own).reshape(-1, size))]

    def __matmul__(self, other: RepresentationLike) -> Composed:
        return Composed(self, as_representation(other))


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
        for name in ("outer", "inner"):
            object.__setattr__(self, name, _one_tensor(as_representation(getattr(self, name))))

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

    @property
    def acts_on(self) -> tuple[int, ...]:
        return tuple(sorted({*self.outer.acts_on, *self.inner.acts_on}, key=lambda dim: (dim < 0, dim)))

    def of_features(self, dims: tuple[int, ...]) -> Representation:
        return Composed(self.outer.of_features(dims), self.inner.of_features(dims))

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
        object.__setattr__(self, "representation", _one_tensor(as_representation(self.representation)))

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return self.representation(g.parts[self.index], x)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return self.representation.infinitesimal(a.parts[self.index], x)

    def check(self, group: Group, shape: torch.Size) -> None:
        self.representation.check(self._factor(group), shape)

    def check_group(self, group: Group) -> None:
        self.representation.check_group(self._factor(group))

    @property
    def trivial(self) -> bool:  # type: ignore[override]
        return self.representation.trivial

    @property
    def acts_on(self) -> tuple[int, ...]:
        return self.representation.acts_on

    def feature_shape(self, channels: int | None, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        return self.representation.feature_shape(channels, dims)

    def of_features(self, dims: tuple[int, ...]) -> Representation:
        return Factor(self.index, self.representation.of_features(dims))

    @property
    def row_dims(self) -> int:  # type: ignore[override]
        return self.representation.row_dims

    def row_size(self, group: Group) -> int | None:
        return self.representation.row_size(self._factor(group))

    def _factor(self, group: Group) -> Group:
        factors = [part.group for part in group.identity().parts]
        if not -len(factors) <= self.index < len(factors):
            raise ValueError(f"{self!r} names a factor that {group} has not: it has {len(factors)}, counted from 0")
        return factors[self.index]


def _one_tensor(part: Representation) -> Representation:
    """A part of a representation, which may not say whose the tensor is: the whole would not know."""
    if part.per is not None or part.shared:
        raise ValueError(f"{part!r} says whose the rows of a tensor are: write it around the whole, not inside")
    return part


# ---- how a representation is written -----------------------------------------------------------------------------
RepresentationLike: TypeAlias = Representation | str | o3.Irreps | Callable[[GroupElement, Tensor], Tensor]
Reader: TypeAlias = Callable[[Any], Representation | None]

_readers: list[Reader] = []


def register_notation(read: Reader) -> Reader:
    """Let `as_representation` understand what `read` makes a representation of; None is what it does not read."""
    _readers.append(read)
    return read


def as_representation(value: RepresentationLike) -> Representation:
    """The representation that a string, e3nn irreps or a callable stands for.

    A string is either irreps ("16x0e+1o") or what is typed in Python ("Point()", "IrrepsTensor('1o', dim=2)",
    "Permuted(1) @ '1o'"), so that it can be written in a configuration file.

    Raises:
        ValueError: the string is neither.
        TypeError: the value is none of these.

    Examples:
        >>> as_representation("1o"), as_representation("Permuted(1) @ '1o'")
        (IrrepsTensor('1x1o'), Permuted(dim=1) @ IrrepsTensor('1x1o'))
    """
    if isinstance(value, Representation):
        return value
    if isinstance(value, type):
        raise TypeError(f"expected a representation, got the class {value.__name__}: write {value.__name__}(...)")
    for read in _readers:
        representation = read(value)
        if representation is not None:
            return representation
    if not isinstance(value, str):
        raise TypeError(f"expected a representation, irreps such as '1o' or a callable (g, x) -> x', got {value!r}")
    try:
        return _from_syntax(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):  # the last two: absurdly nested
        names = ", ".join(f"{name}(...)" for name in sorted(_named()))
        raise ValueError(
            f"no representation is written {value!r}: expected irreps such as '16x0e+1o', or one of {names}"
        ) from None


def _from_syntax(node: ast.expr) -> Representation:
    """A representation from its parsed repr; only known names and literals are understood, nothing is evaluated."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return _from_syntax(node.left) @ _from_syntax(node.right)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return as_representation(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(k.arg is None for k in node.keywords):
            raise ValueError("**")
        keywords = {str(k.arg): _argument(k.value) for k in node.keywords}
        return _named()[node.func.id](*map(_argument, node.args), **keywords)
    raise ValueError(ast.dump(node))


def _argument(node: ast.expr) -> object:
    return _from_syntax(node) if isinstance(node, ast.Call | ast.BinOp) else ast.literal_eval(node)


def _named() -> dict[str, Callable[..., Representation]]:
    """The representations of this package by their names."""
    found: dict[str, Callable[..., Representation]] = {}
    stack: list[Any] = [Representation]
    while stack:
        for cls in stack.pop().__subclasses__():
            stack.append(cls)
            if cls.written and cls.__module__.startswith(__package__):
                found[cls.__name__] = cls
    return found
