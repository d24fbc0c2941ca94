"""Things that change places: permutations, shifts of a grid, and finite groups that move their own elements."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.finite import Cyclic, Dihedral, PolygonGroup
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.action import check_dim
from lightning_equiv.representations.representation import Representation


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
        super().__post_init__()

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        source = g.permutation.argsort(-1).to(x.device)
        for dim in self.dims:
            x = gather(x, source, dim)
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def check(self, group: Group, shape: torch.Size) -> None:
        n = group.identity().permutation.shape[-1]
        for dim in self.dims:
            check_dim(self, shape, dim, n)


@dataclass(frozen=True)
class Shifted(Representation):
    """Circular shifts along a dimension: `(g x)_i = x_{i - s k}` for g = k of C_n, s = length / n places a step.

    A grid of n places is shifted by "Cn"; both directions of a grid of n x m places by "Cn x Cm":
    `Factor(0, Shifted(-2)) @ Factor(1, Shifted(-1))`.

    Args:
        dim: which dimension is shifted; its length is n or a multiple of n.

    Examples:
        >>> from lightning_equiv import Cyclic
        >>> g = Cyclic(4).elements()[1]
        >>> Shifted(1)(g, torch.tensor([[10.0, 11.0, 12.0, 13.0]]))
        tensor([[13., 10., 11., 12.]])
    """

    dim: int = -1

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        part = g.parts[_only(self, g.group, Cyclic)]
        length = x.shape[self.dim]
        step = length // _order(part.group)
        places = torch.arange(length, device=x.device)
        return gather(x, (places - step * part.coordinates[0].to(x.device)[:, None]) % length, self.dim)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def check(self, group: Group, shape: torch.Size) -> None:
        n = _order(group.identity().parts[_only(self, group, Cyclic)].group)
        inside = -len(shape) < self.dim < len(shape) and self.dim != 0
        if not inside or shape[self.dim] < n or shape[self.dim] % n:
            raise ValueError(
                f"{self!r} expects {n} places, or a multiple of it, along dimension {self.dim}, after a first "
                f"dimension that is the batch, got a tensor of shape {tuple(shape)}"
            )

    def check_group(self, group: Group) -> None:
        _only(self, group, Cyclic)


@dataclass(frozen=True)
class Regular(Representation):
    """The regular representation of C_n and D_n, functions on the group: (g x)_{g h} = x_h.

    It moves the orientations of a group convolution; `Image() @ Regular(-3)` moves feature maps (batch, ..., |G|, size,
    size). The elements h are numbered as `group.elements()` lists them. For C_n it is `Shifted`.

    Args:
        dim: which dimension counts the elements of the group.

    Examples:
        >>> from lightning_equiv import Dihedral
        >>> flip = Dihedral(2).elements()[2]
        >>> Regular(1)(flip, torch.tensor([[10.0, 11.0, 12.0, 13.0]]))
        tensor([[12., 13., 10., 11.]])
    """

    dim: int = -1

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        part = g.parts[_only(self, g.group, Cyclic, Dihedral)]
        group = part.group
        assert isinstance(group, PolygonGroup)
        rows = torch.arange(len(part), device=part.device).repeat_interleave(group.order)
        source = part.inverse()[rows] @ group.elements(device=part.device).repeat(len(part))  # (g x)_h = x_{g^-1 h}
        number = sum(c * math.prod(group.moduli[:i]) for i, c in enumerate(source.coordinates))
        assert isinstance(number, Tensor)
        return gather(x, number.reshape(-1, group.order).to(x.device), self.dim)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def check(self, group: Group, shape: torch.Size) -> None:
        part = group.identity().parts[_only(self, group, Cyclic, Dihedral)]
        check_dim(self, shape, self.dim, _order(part.group))

    def check_group(self, group: Group) -> None:
        _only(self, group, Cyclic, Dihedral)


def gather(x: Tensor, source: Tensor, dim: int) -> Tensor:
    """x read at places `source` along a dimension: y[n, .., i, ..] = x[n, .., source[n, i], ..].

    Args:
        x: (n, ...).
        source: (n, length), or (1, length) for all rows.
        dim: which dimension, any but the first.
    """
    dim = dim % x.ndim
    index = source.reshape(len(source), *[source.shape[-1] if d == dim else 1 for d in range(1, x.ndim)])
    return x.gather(dim, index.expand(*[n if d != dim else -1 for d, n in enumerate(x.shape)]))


def _only(representation: Representation, group: Group, *kinds: type[PolygonGroup]) -> int:
    """Which factor of `group` is of one of these kinds; ValueError unless it is exactly one."""
    found = [i for i, part in enumerate(group.identity().parts) if isinstance(part.group, kinds)]
    if len(found) != 1:
        names = " or ".join(f"{kind.__name__}(n)" for kind in kinds)
        raise ValueError(
            f"{representation!r} needs the group {names}, or a product with exactly one such factor, got {group}: "
            f"write Factor(i, {representation!r}) for one of several, Invariant() for what {group} leaves alone"
        )
    return found[0]


def _order(group: Group) -> int:
    assert group.order is not None
    return group.order
