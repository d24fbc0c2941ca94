"""The points of a call by which it is centred and oriented."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.group import GroupElement, element_dtype
from lightning_equiv.groups.product import as_group
from lightning_equiv.groups.translation import Translation
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.call import BoundCall
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import declared, named


@dataclass(frozen=True)
class Points:
    """Which input holds the points.

    Attributes:
        path: its dotted name.
        space: how many components of it the group moves.
        shifted: translations move it, so that it has a centre.
    """

    path: str
    space: int
    shifted: bool

    def cloud(self, call: BoundCall) -> Cloud:
        """The points of a call.

        Raises:
            ValueError: a call without them, or of another shape.
        """
        found = [t for t in call.inputs.tensors if t.path == self.path]
        if not found or found[0].x.shape[-1] < self.space or not found[0].x.is_floating_point():
            got = f"a tensor of shape {tuple(found[0].x.shape)} {found[0].x.dtype}" if found else "a call without it"
            raise ValueError(f"expected points of {self.space} real components at {self.path!r}, got {got}")
        x, owner = found[0].x, found[0].owner
        x = x.to(element_dtype(x.device))[..., : self.space]
        return Cloud(x.reshape(len(x), -1, self.space), owner, call.num_inputs)


@dataclass(frozen=True, eq=False)
class Cloud:
    """The points of each input.

    Attributes:
        x: (rows, c, d) in float64.
        owner: (rows,) the input of each row; None where row i belongs to input i.
        num: n inputs.
    """

    x: Tensor
    owner: Tensor | None
    num: int

    def total(self, values: Tensor) -> Tensor:
        """(n, ...) of values (rows, c, ...) summed over the points of each input."""
        rows = values.sum(1)
        return rows if self.owner is None else rows.new_zeros(self.num, *rows.shape[1:]).index_add(0, self.owner, rows)

    def centroid(self) -> Tensor:
        """(n, d) the mean of each input's points; 0 without points."""
        count = self.total(torch.ones_like(self.x[..., :1])).clamp_min(1)
        return self.total(self.x) / count

    def centred(self) -> Cloud:
        """The points from their centre."""
        centre = self.centroid() if self.owner is None else self.centroid()[self.owner]
        return Cloud(self.x - centre[:, None], self.owner, self.num)

    def dense(self) -> Tensor:
        """(n, most points, d), zeros behind the points of smaller inputs; the host waits where there are graphs."""
        if self.owner is None:
            return self.x
        order = self.owner.argsort(stable=True)
        counts = torch.bincount(self.owner, minlength=self.num)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[self.owner[order]]
        padded = self.x.new_zeros(self.num, int(counts.max()), *self.x.shape[1:])
        return padded.index_put((self.owner[order], place), self.x[order]).flatten(1, 2)


def find_points(symmetry: Symmetry, name: str | int | None, why: str) -> Points:
    """The input that is meant by `name`; without one the only input that translations move.

    Args:
        symmetry: whose inputs are looked at.
        name: of the input, or its position.
        why: what they are needed for, for messages.

    Raises:
        ValueError: none, several, or one that does not move as points or vectors do.
    """
    group = as_group(symmetry.group)
    inputs = list(declared(symmetry.inputs))
    space = group.space_dim
    if space is None:
        raise ValueError(f"{why} needs a group with one matrix, such as SO(2), SO(3), O(3), SE(3) or E(3), got {group}")
    if name is None:
        chosen = [(path, r) for path, r in inputs if _shift(r, space) is True]
        if len(chosen) != 1:
            raise ValueError(
                f"{why} needs the input that holds the points: write points=..., one of {[p for p, _ in inputs]} "
                f"({len(chosen)} of them are declared as Point())"
            )
    else:
        chosen = [(p, r) for p, r in inputs if p == str(name)] or [(p, r) for p, r in inputs if named(p, name)]
        if not chosen:
            raise ValueError(
                f"points={name!r} names no input of the symmetry: expected one of {[p for p, _ in inputs]}"
            )
    path, representation = chosen[0]
    shifted = _shift(representation, space)
    if shifted is None or not _is_vector(representation, symmetry, space):
        raise ValueError(
            f"{why} needs points or vectors with their components last, Point() or '1o', got {representation!r} at "
            f"{path!r}"
        )
    if group.translation_dim is not None and not shifted:
        raise ValueError(f"translations of {group} do not move {path!r}: declare it as Point(), got {representation!r}")
    return Points(path, space, bool(shifted))


def _shift(representation: Representation, space: int) -> bool | None:
    """Whether a translation moves such a tensor; None where it does not hold vectors of that space."""
    for size in (space, 3):
        x = torch.zeros(1, 2, size, dtype=torch.float64)
        try:
            moved = representation(Translation(size).shift(torch.ones(1, size, dtype=torch.float64)), x)
        except (ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError):
            continue
        return bool((moved[..., :space] == 1).all())
    return None


def _is_vector(representation: Representation, symmetry: Symmetry, space: int) -> bool:
    """Whether every element moves such a tensor as its matrix does."""
    g = as_group(symmetry.group).sample(8, generator=torch.Generator().manual_seed(0))
    for size in (space, 3):
        x = torch.arange(1.0, size + 1, dtype=torch.float64).expand(8, 2, size)
        try:
            moved = representation(g, x)
        except (ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError):
            continue
        offset = g.translation_in(size) if _shift(representation, space) else None
        expected = x @ g.matrix_in(size).mT
        return bool(torch.allclose(moved, expected if offset is None else expected + offset[:, None]))
    return False


def centring(linear: GroupElement, symmetry: Symmetry, centre: Tensor | None, times: int) -> GroupElement:
    """Elements R as x -> R (x - c) of the whole group.

    Args:
        linear: times n elements of the group's linear part.
        symmetry: of the call.
        centre: (n, d) c; None for a group without translations.
        times: how many elements each input has.
    """
    group = as_group(symmetry.group)
    if centre is None:
        return linear
    return group.embed(linear) @ group.shift(-centre.repeat(times, 1))
