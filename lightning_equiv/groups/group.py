"""What a group is, the direct product of groups, and how a group is written as a string."""

from __future__ import annotations

import difflib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.element import AlgebraElement, GroupElement, element_dtype

Device = torch.device | str | None


class Group(ABC):
    """A group: how its elements are drawn, composed and inverted.

    A group is a frozen value. It is written as a class (`SO3()`) or as a string (`"SO(3)"`), see `as_group`.

    Attributes:
        dim: dimension of its Lie algebra; 0 for a finite group.
        order: number of its elements; None for an infinite group.
        compact: whether a uniform (Haar) distribution exists on it.
        space_dim: dimension of the vectors that its matrices move; None for a group without matrices.
    """

    dim: int
    order: int | None = None
    compact: bool = True
    space_dim: int | None = None

    # ---- to be said by every group -------------------------------------------------------------------------------
    @abstractmethod
    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        """Coordinates of n Haar-distributed elements, drawn on `device` by `generator`."""

    @abstractmethod
    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        """The neutral element, n times."""

    @abstractmethod
    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        """G h: first h acts, then g; element by element."""

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

    # ---- given to every group ------------------------------------------------------------------------------------
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> GroupElement:
        """N independent elements from the Haar measure.

        Args:
            n: how many; at least 1.
            generator: whose random numbers. The draw is made on the generator's device and then moved, so that the
                same generator gives the same elements everywhere. None: a private generator that starts from
                `torch.initial_seed()`; the global generator is never touched.
            device: where the elements shall lie.
            dtype: precision of the real coordinates; float64 unless said otherwise.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"expected at least one element of {self} to draw, got n={n} (an empty batch?)")
        generator = generator if generator is not None else _private_generator()
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

    def __mul__(self, other: Group) -> Product:
        return Product((*_factors(self), *_factors(other)))


@dataclass(frozen=True)
class Product(Group):
    """Direct product of groups: a tuple of independent elements, written `SO3() * Permutation(5)` or "SO(3) x S5".

    A representation takes from an element the part that it needs: irreps take the factor that has a matrix,
    `Permuted` the one that permutes. Where two factors have one, say which: `Factor(0, "1o")`.

    Examples:
        >>> from lightning_equiv import SO3, Permutation
        >>> group = SO3() * Permutation(5)
        >>> str(group), group.dim
        ('SO(3) x S5', 3)
    """

    factors: tuple[Group, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(part for f in self.factors for part in _factors(as_group(f))))
        if not self.factors:
            raise ValueError("expected at least one factor in a product of groups, got none")

    @property
    def dim(self) -> int:  # type: ignore[override]
        return sum(f.dim for f in self.factors)

    @property
    def order(self) -> int | None:  # type: ignore[override]
        order = 1
        for factor in self.factors:
            if factor.order is None:
                return None
            order *= factor.order
        return order

    @property
    def compact(self) -> bool:  # type: ignore[override]
        return all(f.compact for f in self.factors)

    @property
    def space_dim(self) -> int | None:  # type: ignore[override]
        dims = [f.space_dim for f in self.factors if f.space_dim is not None]
        return dims[0] if len(dims) == 1 else None

    def parts(self, g: GroupElement) -> tuple[GroupElement, ...]:
        parts, start = [], 0
        for factor in self.factors:
            stop = start + len(factor.identity().coordinates)
            parts.append(GroupElement(factor, g.coordinates[start:stop]))
            start = stop
        return tuple(parts)

    def algebra_parts(self, a: AlgebraElement) -> tuple[AlgebraElement, ...]:
        split = a.coefficients.split([f.dim for f in self.factors], dim=-1)
        return tuple(AlgebraElement(f, (c,)) for f, c in zip(self.factors, split, strict=True))

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(c for f in self.factors for c in f.draw(n, generator, device))

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        return self._join([f.identity(n, device=device, dtype=dtype) for f in self.factors])

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        return self._join([a @ b for a, b in zip(g.parts, h.parts, strict=True)])

    def inverse(self, g: GroupElement) -> GroupElement:
        return self._join([part.inverse() for part in g.parts])

    def exp(self, a: AlgebraElement) -> GroupElement:
        return self._join([part.exp() for part in self.algebra_parts(a)])

    def elements(self, *, device: Device = None) -> GroupElement:
        lists = [f.elements(device=device) for f in self.factors]
        grid = torch.cartesian_prod(*[torch.arange(len(e), device=device) for e in lists]).reshape(-1, len(lists))
        return self._join([e[index] for e, index in zip(lists, grid.unbind(1), strict=True)])

    def generators(self, *, device: Device = None) -> GroupElement:
        found = []
        for i, factor in enumerate(self.factors):
            own = factor.generators(device=device)
            parts = [f.identity(len(own), device=device) for f in self.factors]
            parts[i] = own
            found.append(self._join(parts))
        return GroupElement(self, tuple(torch.cat(c) for c in zip(*(g.coordinates for g in found), strict=True)))

    def matrix(self, g: GroupElement) -> Tensor | None:
        part = self._the_one_with_space()
        return None if part is None else g.parts[part].matrix

    def translation(self, g: GroupElement) -> Tensor | None:
        part = self._the_one_with_space()
        return None if part is None else g.parts[part].translation

    def permutation(self, g: GroupElement) -> Tensor | None:
        found = [p for p in (part.group.permutation(part) for part in g.parts) if p is not None]
        if len(found) > 1:
            raise ValueError(
                f"{self} permutes in more than one factor: write which one acts, as in Factor(0, Permuted(1))"
            )
        return found[0] if found else None

    def algebra_matrix(self, a: AlgebraElement) -> Tensor | None:
        part = self._the_one_with_space()
        return None if part is None else self.algebra_parts(a)[part].matrix

    def algebra_translation(self, a: AlgebraElement) -> Tensor | None:
        part = self._the_one_with_space()
        return None if part is None else self.algebra_parts(a)[part].translation

    def _the_one_with_space(self) -> int | None:
        found = [i for i, f in enumerate(self.factors) if f.space_dim is not None]
        if len(found) > 1:
            raise ValueError(
                f"{self} has a matrix in more than one factor: write which one acts, as in Factor(0, '1o')"
            )
        return found[0] if found else None

    def _join(self, parts: Sequence[GroupElement]) -> GroupElement:
        return GroupElement(self, tuple(c for part in parts for c in part.coordinates))

    def __str__(self) -> str:
        return " x ".join(map(str, self.factors))


_patterns: list[tuple[str, re.Pattern[str], type[Group]]] = []


def register_group(example: str, pattern: str, constructor: type[Group]) -> None:
    """Let `as_group` understand strings that match `pattern`; its groups become the numbers that make one."""
    _patterns.append((example, re.compile(pattern, re.IGNORECASE), constructor))


def as_group(group: Group | str) -> Group:
    """The group that a string names.

    "SO(2)", "SO(3)", "O(3)", "SE(3)", "E(3)", "C4" (any n), "D4" (any n), "S5" (any n), and direct products such as
    "SO(3) x S5"; "SE(3, scale=20)" says how far translations go. `str` of a group is such a name. A group is passed
    through.

    Raises:
        ValueError: the string names no group; the nearest names are shown.

    Examples:
        >>> as_group("SO(3) x C4")
        Product(factors=(SO3(), Cyclic(n=4)))
    """
    if isinstance(group, Group):
        return group
    if not isinstance(group, str):
        raise TypeError(f"expected a Group or its name, such as SO3() or 'SO(3)', got {group!r}")
    words = re.split(r"\s+[x×]\s+", group.strip())
    if len(words) > 1:
        return Product(tuple(as_group(word) for word in words))
    for _, pattern, constructor in _patterns:
        match = pattern.fullmatch(words[0])
        if match and len(words[0]) < 100:  # Python refuses numbers of thousands of digits in its own words
            return constructor(*[int(v) if v.isdigit() else float(v) for v in match.groups() if v is not None])
    names = [example for example, _, _ in _patterns]
    near = difflib.get_close_matches(group.upper(), names, n=2, cutoff=0.4)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(
        f"no group is named {group!r}{hint}: expected one of {', '.join(map(repr, names))}, or a product 'SO(3) x S5'"
    )


def derived_generator(*key: object) -> torch.Generator:
    """A fresh CPU generator whose numbers are a pure function of `key`.

    Draws that depend on (seed, rank, epoch, batch) alone need no state to resume from and no state to protect.

    Examples:
        >>> a, b = (torch.rand(1, generator=derived_generator("seed", 0)) for _ in range(2))
        >>> bool(a == b)
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def process_rank() -> int:
    """This process's number under distributed training, 0 elsewhere: a part of every key of `derived_generator`."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


_private: dict[int, torch.Generator] = {}


def _private_generator() -> torch.Generator:
    """One generator for all draws without a generator: follows `seed_everything`, leaves the global one alone."""
    seed = torch.initial_seed()
    if seed not in _private:
        _private.clear()
        _private[seed] = derived_generator("lightning_equiv", seed)
    return _private[seed]


def _factors(group: Group) -> tuple[Group, ...]:
    return group.factors if isinstance(group, Product) else (group,)
