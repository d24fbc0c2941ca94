"""The groups that are tested: the subgroups of a declared one, small to large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.subgroups import direction_name
from lightning_equiv.symmetry.symmetry import Symmetry

Draw = Callable[[int, torch.Generator], GroupElement]
Kind = Literal["axis", "space", "finite", "other"]
_MOST_ELEMENTS = 60  # of a finite group whose elements are all tried


@dataclass(frozen=True)
class Candidate:
    """A group that is tested, as elements of the group of a symmetry.

    Attributes:
        name: in words.
        symmetry: says how elements move inputs and labels.
        draw: n Haar elements.
        elements: all of them, the identity first; None for an infinite or a large group.
        kind: what a canonical orientation is made of: an angle about an axis, a frame of space, a number of an element.
        axis: (3,) of rotations about one.
        declare: what to write as `group`; "" where no name means it.
    """

    name: str
    symmetry: Symmetry
    draw: Draw
    elements: GroupElement | None = None
    kind: Kind = "other"
    axis: Tensor | None = field(default=None, compare=False)
    declare: str = ""

    @property
    def group(self) -> Group:
        """Of the symmetry: the candidate lies in it."""
        return as_group(self.symmetry.group)


def candidates_of(given: Symmetry | str | Group | Sequence[Symmetry | str | Group]) -> tuple[Symmetry, list[Candidate]]:
    """The symmetry that says how data are moved, and the groups that are tested.

    Args:
        given: a symmetry, whose subgroups are tested, too; or a list of those that are, of which the first is a
            symmetry and others may be names of groups that move the same things.

    Raises:
        TypeError: no symmetry.
        ValueError: a group that is not compact.
    """
    listed = [given] if isinstance(given, Symmetry) else list(given) if isinstance(given, list | tuple) else [given]
    if not listed or not isinstance(listed[0], Symmetry):
        raise TypeError(
            "expected a Symmetry, which says how elements move the data, such as Symmetry('SO(3)', inputs={'positions':"
            f" '1o'}}, outputs='1o'), or a list that begins with one, got {given!r}"
        )
    first = listed[0]
    symmetries = [_with_group(first, item) for item in listed]
    for symmetry in symmetries:
        _check_compact(as_group(symmetry.group))
    if isinstance(given, Symmetry):
        return first, subgroups(first)
    return first, [subgroups(symmetry)[-1] for symmetry in symmetries]


def _with_group(first: Symmetry, item: Any) -> Symmetry:
    return item if isinstance(item, Symmetry) else replace(first, group=item)


def _check_compact(group: Group) -> None:
    if group.compact:
        return
    rest = group.linear_part
    instead = "leave it out" if rest is None else f"test the rest of it, group {str(rest)!r}"
    raise ValueError(
        f"{group} is not compact: translations have no uniform distribution to compare the data with. Centre the "
        f"inputs and the labels that move along (x - x.mean(1, keepdim=True)), and {instead}"
    )


def subgroups(symmetry: Symmetry) -> list[Candidate]:
    """The subgroups of a symmetry's group that have a name, and the group itself as the last."""
    group = as_group(symmetry.group)
    parts = group.identity().parts
    if len(parts) > 1:
        return _of_product(symmetry, [part.group for part in parts])
    if group.space_dim == 3 and group.dim == 3:
        return _of_space(symmetry, group)
    if group.space_dim == 2 and group.dim == 1:
        turns = [_finite(symmetry, f"C{n}", _rotations_about(group, None, n), f"C{n}") for n in (2, 4)]
        return [*turns, replace(_whole(symmetry), kind="axis")]
    if group.space_dim == 2 and group.order is not None:
        return _of_polygon(symmetry, group)
    if group.space_dim is None and group.permutation(group.identity()) is not None and (group.order or 0) > 2:
        identity = torch.arange(group.identity().permutation.shape[-1])
        exchanged = identity.clone()
        exchanged[:2] = exchanged[:2].flip(0)
        pair = GroupElement(group, (torch.stack([identity, exchanged]),))
        return [_finite(symmetry, "exchange of the first two", pair), _whole(symmetry)]
    return [_whole(symmetry)]


def about(symmetry: Symmetry, axis: Tensor) -> Candidate:
    """Rotations about one axis of space."""
    group, name = as_group(symmetry.group), direction_name(axis)

    def draw(n: int, generator: torch.Generator) -> GroupElement:
        angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        return group.exp(AlgebraElement(group, (angle[:, None] * axis,)))

    return Candidate(
        f"SO(2) about {name}", symmetry, draw, kind="axis", axis=axis, declare="SO(2)" if name == "z" else ""
    )


def has_axes(symmetry: Symmetry) -> bool:
    """Whether the group is one of rotations of space."""
    group = as_group(symmetry.group)
    return len(group.identity().parts) == 1 and group.space_dim == 3 and group.dim == 3


def _of_space(symmetry: Symmetry, group: Group) -> list[Candidate]:
    axes = [about(symmetry, axis) for axis in torch.eye(3, dtype=torch.float64)]
    whole = replace(_whole(symmetry), kind="space")
    if not len(group.generators()):
        return [*axes, whole]
    one, inversion = group.identity(), group.generators()[0]
    mirrors = [
        _finite(symmetry, f"reflection of {letter}", _joined(one, _rotations_about(group, axis, 2)[1] @ inversion))
        for letter, axis in zip("xyz", torch.eye(3, dtype=torch.float64), strict=True)
    ]
    proper = Candidate(
        "SO(3)", symmetry, lambda n, generator: _proper(group.sample(n, generator=generator)), kind="space",
        declare="SO(3)",
    )  # fmt: skip
    return [_finite(symmetry, "inversion", _joined(one, inversion)), *mirrors, *axes, proper, whole]


def _of_polygon(symmetry: Symmetry, group: Group) -> list[Candidate]:
    elements = group.elements()
    matrix = elements.matrix
    proper = torch.linalg.det(matrix) > 0
    found = []
    for n in range(2, int(proper.sum())):
        power = torch.linalg.matrix_power(matrix, n)
        own = proper & ((power - torch.eye(2, dtype=power.dtype)).abs().amax((-1, -2)) < 1e-6)
        if int(own.sum()) == n:
            found.append(_finite(symmetry, f"C{n}", elements[own.nonzero()[:, 0]], f"C{n}"))
    if not bool(proper.all()):
        turns = elements[proper.nonzero()[:, 0]]
        if len(turns) > 1:
            found.append(_finite(symmetry, f"C{len(turns)}", turns, f"C{len(turns)}"))
        flip = int((~proper).nonzero()[0, 0])
        found.insert(0, _finite(symmetry, "a flip", elements[torch.tensor([0, flip])]))
    return [*found, _whole(symmetry)]


def _of_product(symmetry: Symmetry, factors: Sequence[Group]) -> list[Candidate]:
    """The subgroups of each factor, the others at their identity."""
    group = as_group(symmetry.group)
    found = []
    for i, factor in enumerate(factors):
        name = f" of factor {i}" if [str(f) for f in factors].count(str(factor)) > 1 else ""

        def embedded(g: GroupElement, i: int = i) -> GroupElement:
            parts = [g if k == i else f.identity(len(g)) for k, f in enumerate(factors)]
            return GroupElement(group, tuple(c for part in parts for c in part.coordinates))

        # the representations of the whole would refuse a factor alone: only its elements are needed
        for own in subgroups(Symmetry(factor, inputs=(), outputs=())):

            def draw(n: int, generator: torch.Generator, own: Candidate = own, put: Any = embedded) -> GroupElement:
                moved: GroupElement = put(own.draw(n, generator))
                return moved

            elements = None if own.elements is None else embedded(own.elements)
            kind: Kind = "other" if elements is None else "finite"
            found.append(Candidate(own.name + name, symmetry, draw, elements, kind))
    return [*found, _whole(symmetry)]


def _whole(symmetry: Symmetry) -> Candidate:
    group = as_group(symmetry.group)
    if group.order is not None and group.order <= _MOST_ELEMENTS:
        return _finite(symmetry, str(group), group.elements(), str(group))
    return Candidate(
        str(group), symmetry, lambda n, generator: group.sample(n, generator=generator), declare=str(group)
    )


def _finite(symmetry: Symmetry, name: str, elements: GroupElement, declare: str = "") -> Candidate:
    def draw(n: int, generator: torch.Generator) -> GroupElement:
        return elements[torch.randint(len(elements), (n,), generator=generator)]

    return Candidate(name, symmetry, draw, elements, "finite", declare=declare)


def _rotations_about(group: Group, axis: Tensor | None, n: int) -> GroupElement:
    """The rotations by multiples of 2 pi / n, the identity first."""
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64)[:, None] / n
    return group.exp(AlgebraElement(group, (angle if axis is None else angle * axis,)))


def _joined(*parts: GroupElement) -> GroupElement:
    columns = zip(*(part.coordinates for part in parts), strict=True)
    return GroupElement(parts[0].group, tuple(torch.cat(column) for column in columns))


def _proper(g: GroupElement) -> GroupElement:
    """g, or its product with the inversion, whichever is a rotation."""
    matrix = g.coordinates[0]
    return GroupElement(g.group, (matrix * torch.linalg.det(matrix).sign()[:, None, None],))
