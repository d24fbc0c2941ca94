"""Direct products of groups, and how a group is written as a string."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.group import AlgebraElement, Device, Group, GroupElement, Irreducible


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
        return self._combined([f.elements(device=device) for f in self.factors])

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

    @property
    def rotates(self) -> bool:  # type: ignore[override]
        return any(f.rotates for f in self.factors)

    @property
    def translation_dim(self) -> int | None:  # type: ignore[override]
        dims = [f.translation_dim for f in self.factors if f.translation_dim is not None]
        return dims[0] if len(dims) == 1 else None

    @property
    def linear_part(self) -> Group | None:
        found = [part for part in (f.linear_part for f in self.factors) if part is not None]
        return found[0] if len(found) == 1 else Product(tuple(found)) if found else None

    def embed(self, g: GroupElement) -> GroupElement:
        rest, reals = iter(g.parts), [c.dtype for c in g.coordinates if c.is_floating_point()]
        dtype = reals[0] if reals else None
        return self._join(
            [
                f.identity(len(g), device=g.device, dtype=dtype) if f.linear_part is None else f.embed(next(rest))
                for f in self.factors
            ]
        )

    def shift(self, t: Tensor) -> GroupElement:
        one = self._the_only([f.translation_dim is not None for f in self.factors], "translations")
        return self._join(
            [
                f.shift(t) if i == one else f.identity(len(t), device=t.device, dtype=t.dtype)
                for i, f in enumerate(self.factors)
            ]
        )

    def turn_by(self, angle: Tensor, generator: torch.Generator | None) -> GroupElement:
        one = self._the_only([f.rotates for f in self.factors], "rotations")
        return self._join(
            [
                f.turn_by(angle, generator) if i == one else f.identity(len(angle), device=angle.device)
                for i, f in enumerate(self.factors)
            ]
        )

    def angle(self, g: GroupElement) -> Tensor:
        part = g.parts[self._the_only([f.rotates for f in self.factors], "rotations")]
        return part.group.angle(part)

    def irreducibles(self, highest: int) -> list[Irreducible]:
        choices = itertools.product(*(f.irreducibles(highest) for f in self.factors))
        return [
            Irreducible(" x ".join(r.name for r in c), math.prod(r.dim for r in c), sum(r.casimir for r in c))
            for c in choices
        ]

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        found = [part.group.kernels(part, highest) for part in g.parts]
        return functools.reduce(lambda a, b: (a[:, None] * b).flatten(0, 1), found)

    def grid(self, degree: int) -> tuple[GroupElement, Tensor]:
        grids = [f.grid(degree) for f in self.factors]
        weights = functools.reduce(lambda a, b: (a[:, None] * b).flatten(), [w for _, w in grids])
        return self._combined([g for g, _ in grids]), weights

    def _combined(self, lists: Sequence[GroupElement]) -> GroupElement:
        """Every choice of one element from each list; the last factor runs fastest."""
        choices = torch.cartesian_prod(*[torch.arange(len(e), device=e.device) for e in lists])
        return self._join([e[i] for e, i in zip(lists, choices.reshape(-1, len(lists)).unbind(1), strict=True)])

    def _the_only(self, has: list[bool], what: str) -> int:
        if sum(has) != 1:
            raise ValueError(f"expected {what} in one factor of {self}, got {sum(has)}: take the factors one by one")
        return has.index(True)

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


def _factors(group: Group) -> tuple[Group, ...]:
    return group.factors if isinstance(group, Product) else (group,)


Group.product_type = Product  # `SO3() * Permutation(5)`
