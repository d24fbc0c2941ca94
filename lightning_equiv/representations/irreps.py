"""Direct sums of irreducible representations of O(3), in e3nn's convention."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from e3nn import o3
from torch import Tensor

from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.action import check_dim
from lightning_equiv.representations.representation import Copies, Representation, register_notation
from lightning_equiv.representations.wigner import rotate_irreps, rotate_irreps_infinitesimal


@dataclass(frozen=True)
class IrrepsTensor(Representation):
    """A direct sum of irreducible representations of O(3), in e3nn's layout and convention.

    x = (+)_l x_l, and every x_l of parity p turns with the Wigner matrix D^{l,p}(R), block by block. The groups of the
    plane act as rotations about z and reflections that keep z; translations do not act. One number an input may be (n,)
    as well as (n, 1).

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

    if TYPE_CHECKING:

        def __init__(self, irreps: str | o3.Irreps, dim: int = -1) -> None: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "irreps", o3.Irreps(self.irreps))
        except (ValueError, AssertionError):
            raise ValueError(f"expected irreps such as '16x0e+8x1o', got {self.irreps!r}") from None

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        if x.ndim == 1:
            return self.action(g, x[:, None])[:, 0]
        return rotate_irreps(g.matrix_in(3).to(x.device), x, self.irreps, dim=self.dim)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        if x.ndim == 1:
            return self.infinitesimal(a, x[:, None])[:, 0]
        omega = a.matrix_in(3).to(x.device)
        vector = torch.stack([omega[:, 2, 1], omega[:, 0, 2], omega[:, 1, 0]], dim=-1)
        return rotate_irreps_infinitesimal(vector, x, self.irreps, dim=self.dim)

    def contract(self, weight: Tensor, g: GroupElement, x: Tensor, times: int, matrices: dict[Any, Tensor]) -> Tensor:
        """W rho(g) x = sum_ij D_ij(g) (sum_c W_ci x_cj): channels are summed before anything turns, once for all g."""
        if self.dim != -1:
            return super().contract(weight, g, x, times, matrices)
        n, width = len(x), len(weight)
        x, weight = (t.reshape(len(t), -1, self.irreps.dim) for t in (x, weight))
        total: Tensor | None = None
        for (_, ir), block in zip(self.irreps, self.irreps.slices(), strict=True):
            x_b, w_b = (t[..., block].reshape(len(t), -1, ir.dim) for t in (x, weight))  # (n or width, channels, d)
            if ir.l == 0 and ir.p == 1:
                part = (x_b.flatten(1) @ w_b.flatten(1).mT)[:, None].expand(n, times, width)
            else:
                sums = x_b.mT.reshape(n * ir.dim, -1) @ w_b.permute(1, 2, 0).flatten(1)  # [n j, i width]
                sums = sums.view(n, ir.dim, ir.dim, width).transpose(1, 2).reshape(n, ir.dim**2, width)
                part = _wigner_entries(ir, g, n, sums, matrices) @ sums
            total = part if total is None else total + part
        assert total is not None
        return total.transpose(0, 1).reshape(times * n, width)

    def check(self, group: Group, shape: torch.Size) -> None:
        one_number = len(shape) == 1 and self.irreps.dim == 1 and self.dim == -1
        check_dim(self, torch.Size((*shape, 1)) if one_number else shape, self.dim, self.irreps.dim)

    @property
    def part_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(ir) for _, ir in self.irreps))

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """One part for each kind of irrep."""
        rows = x[:, None] if x.ndim == 1 else x.movedim(self.dim, -1)
        blocks: dict[str, list[Tensor]] = {name: [] for name in self.part_names}
        for (_, ir), block in zip(self.irreps, self.irreps.slices(), strict=True):
            blocks[str(ir)].append(rows[..., block])
        return {name: torch.cat(own, dim=-1) for name, own in blocks.items()}

    def row_size(self, group: Group) -> int | None:
        return int(self.irreps.dim) if self.dim == -1 else None

    def feature_shape(self, channels: int | None, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        width = int(self.irreps.dim)
        if len(dims) == 1:
            return (width,)
        if channels is None or len(dims) > 2:
            return None
        return (width, channels) if dims.index(self.dim) == 0 else (channels, width)

    def copies(self, features: tuple[int, ...]) -> list[Copies]:
        """One entry for each kind of irrep."""
        places = torch.arange(math.prod(features)).reshape(features).movedim(self.dim % (len(features) + 1) - 1, -1)
        blocks: dict[o3.Irrep, list[Tensor]] = {}
        for (_, ir), block in zip(self.irreps, self.irreps.slices(), strict=True):
            blocks.setdefault(ir, []).append(places[..., block].reshape(-1, ir.dim))
        axis = self.dim % (len(features) + 1) - 1
        return [
            Copies(
                IrrepsTensor(o3.Irreps([(1, ir)]), dim=self.dim),
                tuple(ir.dim if dim == axis else 1 for dim in range(len(features))),
                torch.cat(own),
            )
            for ir, own in blocks.items()
        ]

    def __repr__(self) -> str:
        return f"IrrepsTensor({str(self.irreps)!r}{'' if self.dim == -1 else f', dim={self.dim}'})"


def _wigner_entries(ir: o3.Irrep, g: GroupElement, n: int, like: Tensor, matrices: dict[Any, Tensor]) -> Tensor:
    """(n, times, d d) entries D[i, j] of the irrep for `times` elements of n rows; computed once for one g."""
    key = f"{ir} {n}"
    if key not in matrices:
        eye = torch.eye(ir.dim, device=like.device, dtype=like.dtype).expand(len(g), -1, -1)
        columns = IrrepsTensor(o3.Irreps([(1, ir)]))(g, eye)  # [times n, j, i]
        matrices[key] = columns.mT.reshape(len(g) // n, n, -1).transpose(0, 1)
    return matrices[key]


@register_notation
def _from_irreps(value: object) -> IrrepsTensor | None:
    """Irreps of e3nn, or a string that is irreps."""
    if isinstance(value, o3.Irreps | o3.Irrep):
        return IrrepsTensor(value)
    with suppress(ValueError):
        return IrrepsTensor(value) if isinstance(value, str) else None
    return None
