"""Directions of a Lie algebra by name, and the subgroup that a network keeps, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_equiv.groups.group import Group

_SAME = 1e-3  # how far a direction may be from one with a short name
_LARGEST = 6  # whole number in a direction's name


@dataclass(frozen=True)
class _Generator:
    """A basis element of the algebra.

    Attributes:
        factor: name of its factor in a product of groups; "" elsewhere.
        kind: what it does.
        direction: (3,) axis or direction, without length in the plane's rotations; None for any other kind.
    """

    factor: str
    kind: Literal["rotations", "translations", "motions"]
    direction: Tensor | None

    def name(self, number: int) -> str:
        """x, y, z; tx, ty, tz; rotation; with the factor in front."""
        if self.kind == "motions":
            own = f"generator {number}"
        elif self.direction is None:
            own = "rotation"
        else:
            own = ("t" if self.kind == "translations" else "") + "xyz"[int(self.direction.abs().argmax())]
        return f"{self.factor}.{own}" if self.factor else own


def generator_names(group: Group) -> tuple[str, ...]:
    """The names of `group.algebra()`: "x", "y", "z" are rotations about these axes, "tx", "ty", "tz" translations.

    The rotation of a plane is "rotation"; in a product the factor goes in front.

    Examples:
        >>> from lightning_equiv import as_group
        >>> generator_names(as_group("SE(3)"))
        ('x', 'y', 'z', 'tx', 'ty', 'tz')
        >>> generator_names(as_group("SO(2) x T(2)"))
        ('SO(2).rotation', 'T(2).tx', 'T(2).ty')
    """
    return tuple(generator.name(i) for i, generator in enumerate(_generators(group)))


def describe_kept(group: Group, gram: Tensor, floor: float) -> str:
    """The directions A with sqrt( a^T M a ) <= floor for |a| = 1, in words: "all", "none", "rotations about z".

    Args:
        group: whose algebra has the basis A_i, A = sum_i a_i A_i.
        gram: (dim, dim) M.
        floor: what counts as 0.
    """
    everything = _null_space(gram, floor)
    if everything.shape[1] in (0, len(gram)):
        return "all" if everything.shape[1] else "none"
    generators = _generators(group)
    words, known = [], []
    for factor, kind in dict.fromkeys((g.factor, g.kind) for g in generators):
        places = [i for i, g in enumerate(generators) if (g.factor, g.kind) == (factor, kind)]
        null = _null_space(gram[places][:, places], floor)
        if null.shape[1]:
            whole = gram.new_zeros(len(gram), null.shape[1])
            whole[places] = null
            known.append(whole)
            directions = [generators[i].direction for i in places]
            words.append(_in_factor(factor, _describe(kind, null, directions)))
    rest = everything
    if known:
        basis = torch.cat(known, dim=1)
        rest = _orthonormal(everything - basis @ (basis.T @ everything))
    return " and ".join([*words, *(_describe_mixed(generators, a) for a in rest.unbind(1))])


def _generators(group: Group) -> list[_Generator]:
    """The basis of `group.algebra()`."""
    parts = [part.group for part in group.identity().parts]
    names = [str(part) for part in parts]
    found = []
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        factor = "" if len(parts) == 1 else name if names.count(name) == 1 else f"{name}[{i}]"
        basis = part.algebra()
        matrices, shifts = part.algebra_matrix(basis), part.algebra_translation(basis)
        for k in range(part.dim):
            turns = matrices is not None and bool(matrices[k].any())
            shift = None if shifts is None or not bool(shifts[k].any()) else shifts[k]
            if turns and shift is None and matrices is not None:
                found.append(_Generator(factor, "rotations", _axis(matrices[k])))
            elif shift is not None and not turns:
                padded = torch.nn.functional.pad(shift, (0, 3 - len(shift)))
                found.append(_Generator(factor, "translations", padded))
            else:
                found.append(_Generator(factor, "motions", None))
    return found


def _axis(matrix: Tensor) -> Tensor | None:
    """w of the antisymmetric matrix of w x; None in the plane."""
    return None if len(matrix) == 2 else torch.stack([matrix[2, 1], matrix[0, 2], matrix[1, 0]])


def _null_space(gram: Tensor, floor: float) -> Tensor:
    """(dim, k) eigenvectors whose eigenvalue has a root up to `floor`."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, values <= floor**2]


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of what the columns, parts of unit vectors, span."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, values > 0.5]


def _describe(kind: str, null: Tensor, directions: list[Tensor | None]) -> str:
    """A subspace (generators, k) of the rotations or the translations of one group."""
    if null.shape[1] == len(null) or directions[0] is None:
        return kind
    axes = torch.stack([d for d in directions if d is not None])  # (generators, 3)
    vectors = null.T @ axes
    preposition = "about" if kind == "rotations" else "along"
    if len(vectors) == 1:
        return f"{kind} {preposition} {direction_name(vectors[0])}"
    normal = torch.linalg.cross(vectors[0], vectors[1])
    inside = [letter for letter, size in zip("xyz", normal.abs(), strict=True) if size < _SAME]
    if len(inside) == 2:
        return f"{kind} {preposition} {' and '.join(inside)}"
    return f"{kind} {preposition} every direction normal to {direction_name(normal)}"


def _describe_mixed(generators: list[_Generator], a: Tensor) -> str:
    """A direction of the algebra that lies in no single kind of generators."""
    factors = {g.factor for g, c in zip(generators, a, strict=True) if abs(c) > _SAME}
    turn, shift = a.new_zeros(3), a.new_zeros(3)
    in_space = len(factors) == 1
    for g, c in zip(generators, a, strict=True):
        if g.direction is not None:
            (turn if g.kind == "rotations" else shift).add_(c * g.direction)
        elif abs(c) > _SAME:
            in_space = False
    if not in_space or not bool(turn.any()):
        terms = [f"{c:.2f} {g.name(i)}" for i, (g, c) in enumerate(zip(generators, a, strict=True)) if abs(c) > _SAME]
        return f"motions along {' + '.join(terms)}"
    point = torch.linalg.cross(turn, shift) / turn.dot(turn)  # v = -w x p, and p normal to w
    along = turn.dot(shift).abs() > _SAME * turn.norm() * shift.norm()
    kind = "screw motions" if along else "rotations"
    through = ", ".join(f"{c + 0.0:.3g}" for c in point.round(decimals=6).tolist())
    return _in_factor(factors.pop(), f"{kind} about {direction_name(turn)} through ({through})")


def _in_factor(factor: str, words: str) -> str:
    return f"{words} of {factor}" if factor else words


def direction_name(direction: Tensor) -> str:
    """A direction in space, up to its sign: "z", "(1, 2, 2)/3", "(1, 1, 0)/sqrt(2)", or decimals.

    Examples:
        >>> direction_name(torch.tensor([-1.0, -2.0, -2.0])), direction_name(torch.tensor([0.0, 0.0, 2.0]))
        ('(1, 2, 2)/3', 'z')
        >>> direction_name(torch.tensor([0.5, 0.7, 0.9]))
        '(0.402, 0.562, 0.723)'
    """
    unit = direction / direction.norm()
    first = unit[unit.abs() > _SAME][0]
    unit = unit * first.sign()
    for largest in range(1, _LARGEST + 1):
        whole = (unit / unit.abs().max() * largest).round()
        if bool((whole / whole.norm() - unit).norm() < _SAME):
            numbers = [int(c) for c in whole]
            if largest == 1 and sum(map(abs, numbers)) == 1:
                return "xyz"[numbers.index(1)]
            square = sum(c * c for c in numbers)
            root = math.isqrt(square)
            norm = str(root) if root * root == square else f"sqrt({square})"
            return f"({', '.join(map(str, numbers))})/{norm}"
    return f"({', '.join(f'{c:.3f}' for c in unit.tolist())})"
