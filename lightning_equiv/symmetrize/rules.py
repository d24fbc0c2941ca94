"""Elements and weights by which a network is averaged over a group: subgroups, quadratures, draws."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import Product
from lightning_equiv.groups.quadrature import quadrature
from lightning_equiv.groups.rotation import O3, SO3

Subgroup = Literal["tetrahedral", "octahedral", "icosahedral"]

_MOST_LISTED = 1024  # elements of a finite group that are all taken by default
_DRAWS = 32
_DEGREE_OF_PLANE = 7  # eight turns
_MOST = 2**14  # elements of one rule


@dataclass(frozen=True, eq=False)
class Rule:
    """A fixed choice of elements and weights.

    Attributes:
        elements: K of them.
        weights: (K,) float64, of sum 1.
        name: in words.
    """

    elements: GroupElement
    weights: Tensor
    name: str


def rule_of(
    group: Group, subgroup: Subgroup | None = None, degree: int | None = None, num_samples: int | None = None
) -> Rule | int:
    """The rule for a compact group, or how many elements are to be drawn for each input.

    Args:
        group: compact.
        subgroup: of the rotations of space in it.
        degree: to which a quadrature of its continuous factors is exact.
        num_samples: Haar draws.

    Raises:
        ValueError: two of the three, or one that the group does not have.
    """
    given = {"subgroup": subgroup, "degree": degree, "num_samples": num_samples}
    if sum(value is not None for value in given.values()) > 1:
        raise ValueError(f"expected one of subgroup, degree and num_samples, got {given}")
    check_number("num_samples", num_samples, least=1, whole=True, optional=True)
    check_number("degree", degree, least=0, whole=True, optional=True)
    if subgroup is not None and subgroup not in get_args(Subgroup):
        raise ValueError(f"expected subgroup to be one of {get_args(Subgroup)}, got {subgroup!r}")
    factors = group.factors if isinstance(group, Product) else (group,)
    if subgroup is not None and not any(isinstance(f, SO3 | O3) for f in factors):
        raise ValueError(
            f"subgroup={subgroup!r} is one of the rotations of space, which {group} does not have: leave it out"
        )
    if num_samples is not None:
        return num_samples
    if any(f.order is not None and f.order > _MOST_LISTED for f in factors):
        return _DRAWS
    rules = [_of_factor(f, subgroup, degree) for f in factors]
    if math.prod(len(r.weights) for r in rules) > _MOST:
        sizes = " x ".join(str(len(r.weights)) for r in rules)
        raise ValueError(f"the rule for {group} has {sizes} elements (more than {_MOST}): draw some, num_samples=32")
    return rules[0] if not isinstance(group, Product) else _product(group, rules)


def _of_factor(group: Group, subgroup: Subgroup | None, degree: int | None) -> Rule:
    """The rule for a group that is no product."""
    if group.order is not None:
        elements = group.elements()
        return Rule(elements, _uniform(len(elements)), f"all {len(elements)} elements of {group}")
    if degree is None and isinstance(group, SO3 | O3):
        matrix = subgroup_matrices(subgroup or "octahedral")
        matrix = torch.cat([matrix, -matrix]) if isinstance(group, O3) else matrix
        name = f"{len(matrix)} elements, {subgroup or 'octahedral'}"
        return Rule(GroupElement(group, (matrix,)), _uniform(len(matrix)), name)
    degree = _DEGREE_OF_PLANE if degree is None else degree
    elements, weights = quadrature(group, degree)
    return Rule(elements, weights, f"{len(weights)} elements, exact to degree {degree}")


def _product(group: Product, rules: list[Rule]) -> Rule:
    """Every choice of one element from each rule; the last factor runs fastest."""
    choices = list(torch.meshgrid(*(torch.arange(len(r.weights)) for r in rules), indexing="ij"))
    picked = [rule.elements[i.flatten()] for rule, i in zip(rules, choices, strict=True)]
    coordinates = tuple(c for part in picked for c in part.coordinates)
    weights = functools.reduce(lambda a, b: (a[:, None] * b).flatten(), [r.weights for r in rules])
    return Rule(GroupElement(group, coordinates), weights, " x ".join(r.name for r in rules))


def _uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def subgroup_matrices(name: Subgroup) -> Tensor:
    """(12, 24 or 60, 3, 3) the rotations of a tetrahedron, of a cube, of an icosahedron; float64, the identity first.

    Examples:
        >>> [len(subgroup_matrices(name)) for name in ("tetrahedral", "octahedral", "icosahedral")]
        [12, 24, 60]
    """
    cube = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            cube.append(torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)])
    proper = torch.stack([m for m in cube if torch.linalg.det(m) > 0])
    if name == "octahedral":
        return proper
    even = [m for m in proper if torch.linalg.det(m.abs()) > 0]  # cyclic orders of the axes
    tetrahedral = torch.stack(even)
    if name == "tetrahedral":
        return tetrahedral
    # an icosahedron with corners (0, 1, phi) and so on has these 12 turns, and those by a fifth about a corner: T C5
    axis = torch.tensor([0.0, 1.0, (1 + math.sqrt(5)) / 2], dtype=torch.float64)
    x, y, z = (axis / axis.norm()).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    angles = 2 * math.pi / 5 * torch.arange(5, dtype=torch.float64)[:, None, None]
    fifths = torch.eye(3, dtype=torch.float64) + angles.sin() * cross + (1 - angles.cos()) * (cross @ cross)
    return (tetrahedral[:, None] @ fifths).flatten(0, 1)
