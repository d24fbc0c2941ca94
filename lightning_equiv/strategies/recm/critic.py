"""How far the joint law of a layer's inputs and targets is from symmetric, as a learned 1-Lipschitz function sees it.

    s = mean_i [ u(z_i) - (1/M) sum_m u(T_{g_im} z_i) ]      z = [x / rms(x); y / rms(y)] / sqrt(dim)
    T_g (x, y) = (rho(g) x, rho_Y(g) y),                     g_im uniform on the group

The mean of s over data and group elements is E_p u - E_p̄ u with p the law of z and p̄ its average over the group. It
is 0 for every u where p is symmetric, and no longer than W1(p, p̄) where u is 1-Lipschitz (Kantorovich, Rubinstein).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group, GroupElement, element_dtype
from lightning_equiv.layers.branch import Branch
from lightning_equiv.representations.action import wide
from lightning_equiv.representations.representation import Representation

GELU_SLOPE = 1.1289042  # the largest slope of GELU, at sqrt(2)
FULL_SUM = 16  # elements of a finite group up to which all are taken


class LipschitzCritic(nn.Module):
    """u, a 1-Lipschitz function of z, and the direction w / |w| in which the state is read.

    Args:
        dim: length of z.
        width: of the hidden layer.
        state_dim: length of u(z).
    """

    def __init__(self, dim: int, width: int, state_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, state_dim, bias=False)
        self.w = nn.Parameter(torch.randn(state_dim))

    def forward(self, z: Tensor) -> Tensor:
        """V gelu(U z + b) / 1.13 with |U| = |V| = 1: u(z) (n, state_dim) of z (n, dim)."""
        return self.read(nn.functional.linear(z, unit(self.inner.weight.to(z))))

    def read(self, projected: Tensor) -> Tensor:
        """V gelu(U z + b) / 1.13 of U z (n, width)."""
        hidden = nn.functional.gelu(projected + self.inner.bias.to(projected)) / GELU_SLOPE
        return nn.functional.linear(hidden, unit(self.outer.weight.to(projected)))

    def direction(self) -> Tensor:
        """w / |w|."""
        return nn.functional.normalize(self.w, dim=0)


def unit(weight: Tensor) -> Tensor:
    """A matrix over its spectral norm, exactly: the root of the largest eigenvalue of W W^T."""
    norm = torch.linalg.eigvalsh((weight @ weight.mT).nan_to_num())[
        -1
    ].sqrt()  # weights of NaN stay so, without a crash
    return weight / norm


@dataclass(frozen=True)
class Draw:
    """Group elements for the rows of a step: M for each row, the n of m = 1 first.

    Attributes:
        elements: at least M n of them.
        times: M.
        matrices: of the elements, for `Representation.contract`.
    """

    elements: GroupElement
    times: int
    matrices: dict[Any, Tensor] = field(default_factory=dict)


def draw_elements(
    group: Group, times: int, max_rows: int, generator: Callable[[], torch.Generator], device: torch.device
) -> Callable[[int], Draw]:
    """Elements for a step: from a number of rows, the whole of a small finite group for each, or `times` of its own.

    Args:
        group: whose.
        times: M.
        max_rows: most rows that will be asked for.
        generator: makes the generator that draws.
        device: where the elements are wanted.
    """
    order = group.order
    if order is not None and order <= FULL_SUM:
        every, numbers = group.elements(device=device), torch.arange(order, device=device)
        return lambda rows: Draw(every[numbers.repeat_interleave(rows)], order)
    draw = Draw(group.sample(times * max_rows, generator=generator(), device=device), times)
    return lambda rows: draw


@dataclass(frozen=True)
class Rows:
    """Things that a group moves, one in each row.

    Attributes:
        values: (n, numbers).
        shape: what the representation takes a row for.
        representation: how an element moves (n, *shape).
    """

    values: Tensor
    shape: tuple[int, ...]
    representation: Representation

    def take(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return replace(self, values=self.values[index])

    def projected(self, weight: Tensor, draw: Draw | None = None) -> Tensor:
        """The rows, or what the elements make of them, times `weight` (width, numbers): (n, width) or (M n, width)."""
        if draw is None:
            return nn.functional.linear(self.values, weight)
        g = draw.elements[: draw.times * len(self.values)]
        return self.representation.contract(weight, g, self.values.unflatten(1, self.shape), draw.times, draw.matrices)


def feature_rows(branch: Branch, x: Tensor, side: str) -> Rows:
    """A layer's inputs ("in") or outputs ("out") as rows; a convolution's are averaged over the grid."""
    layer = branch.layer
    representation, features = (
        (layer.inputs, layer.in_features) if side == "in" else (layer.outputs, layer.out_features)
    )
    assert representation is not None
    assert features is not None
    rows = branch.rows(x.detach())
    if layer.grid:
        rows = rows.flatten(2).mean(-1)
    return Rows(wide(rows), (*features, *[1] * layer.grid), representation)


def mean_squares(x: Rows, y: Rows) -> Tensor:
    """(2,) mean squares of the numbers of x and of y, in float64 where a device has it: data may be of any scale."""
    exact = element_dtype(x.values.device)
    norms = [torch.linalg.vector_norm(rows.values, dtype=exact) / rows.values.numel() ** 0.5 for rows in (x, y)]
    return torch.stack(norms).square()


def violation(critic: LipschitzCritic, x: Rows, y: Rows, draw: Draw, squares: Tensor) -> Tensor:
    """(state_dim,) s of the head of this file.

    Args:
        critic: u.
        x: n rows.
        y: n rows.
        draw: g.
        squares: (2,) mean squares that x and y are divided by, under a root.
    """
    n, sizes = len(x.values), [x.values.shape[1], y.values.shape[1]]
    scale = torch.where(squares > 0, squares.rsqrt(), 0) / math.sqrt(sum(sizes))
    parts = unit(critic.inner.weight.to(x.values)).split(sizes, dim=1)
    weights = [part * factor for part, factor in zip(parts, scale.to(x.values), strict=True)]
    still, moved = (x.projected(weights[0], d) + y.projected(weights[1], d).to(x.values) for d in (None, draw))
    u = critic.read(torch.cat([still, moved]))
    s: Tensor = u[:n].mean(0) - u[n:].mean(0)
    return s
