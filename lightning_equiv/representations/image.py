"""Images and vector fields on a square grid, rotated and flipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.finite import PolygonGroup
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.action import apply_matrix, check_dim, wide
from lightning_equiv.representations.representation import Representation


@dataclass(frozen=True)
class Image(Representation):
    """A scalar image on a square grid: (g I)(p) = I(R^-1 p), p measured from the centre, x to the right, y up.

    The last two dimensions are rows and columns, as displayed: a positive angle turns counter-clockwise. C4 and D4 (and
    their subgroups) move pixels exactly onto pixels. Any other angle is interpolated by cubic convolution (Keys,
    a = -1/2, exact for quadratics); beyond the border the image is 0. What interpolation loses is the noise floor of a
    measurement.

    Examples:
        >>> from lightning_equiv import Cyclic
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> Image()(Cyclic(4).elements()[1], x)
        tensor([[[2., 4.],
                 [1., 3.]]])
    """

    acts_through = "matrix"

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        size = x.shape[-1]
        source = turned_grid(size, g.matrix)  # p^T R = (R^-1 p)^T
        if moves_pixels_to_pixels(g.group):
            column, row = _to_index(source.unbind(-1), size)
            return _gather(x, (row.round() * size + column.round()).long())
        return interpolate(x, source)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        """-(grad I)(p) . Omega p with central differences, the slope of the cubic interpolant."""
        if not x.is_floating_point():
            raise ValueError(f"expected floating point pixels to differentiate, got {x.dtype}: write x.float()")
        size = x.shape[-1]
        pixels = wide(x)
        velocity = turned_grid(size, a.matrix.to(pixels))  # p^T Omega = -(Omega p)^T
        velocity = velocity.reshape(len(a), *[1] * (x.ndim - 3), size, size, 2)
        padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1))
        slope_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        slope_y = (padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]) / 2  # y grows upwards, rows downwards
        return (velocity[..., 0] * slope_x + velocity[..., 1] * slope_y).to(x.dtype)

    def check(self, group: Group, shape: torch.Size) -> None:
        check_grid(self, group, shape)

    def check_group(self, group: Group) -> None:
        check_plane(self, group)


@dataclass(frozen=True)
class VectorField(Representation):
    """A field of vectors on a square grid: (g v)(p) = R v(R^-1 p).

    Channels (dimension -3) are the vectors' components, x and y in turn: (vx1, vy1, vx2, vy2, ...), x to the right,
    y up; rows and columns as for `Image`.

    Examples:
        >>> from lightning_equiv import SO2
        >>> VectorField()(SO2().sample(10), torch.randn(10, 2, 32, 32)).shape
        torch.Size([10, 2, 32, 32])
    """

    acts_through = "matrix"

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return self._turn(g.matrix, Image()(g, x))

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return Image().infinitesimal(a, x) + self._turn(a.matrix, x)

    def _turn(self, matrix: Tensor, x: Tensor) -> Tensor:
        vectors = x.unflatten(-3, (-1, 2))
        return apply_matrix(matrix, vectors, dim=-3).flatten(-4, -3)

    def check(self, group: Group, shape: torch.Size) -> None:
        check_grid(self, group, shape)
        if len(shape) < 4 or shape[-3] % 2:
            check_dim(self, shape, -3, 2)

    def check_group(self, group: Group) -> None:
        check_plane(self, group)


def grid(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size * size, 2) pixel centres (x, y) from the middle of the image, x to the right, y up, row by row."""
    step = torch.arange(size, device=device, dtype=dtype) - (size - 1) / 2
    return torch.stack(torch.meshgrid(step, -step, indexing="xy"), dim=-1).reshape(-1, 2)


def turned_grid(size: int, matrix: Tensor) -> Tensor:
    """(n, size * size, 2) rows p^T M of pixel centres p, for `matrix` (n, 2, 2)."""
    points = grid(size, matrix.device, matrix.dtype)
    return points[:, :1] * matrix[:, None, 0] + points[:, 1:] * matrix[:, None, 1]  # no matmul: autocast would round it


def moves_pixels_to_pixels(group: Group) -> bool:
    """Whether every element is a quarter turn or a flip of one."""
    return isinstance(group, PolygonGroup) and 4 % group.n == 0


def interpolate(x: Tensor, points: Tensor) -> Tensor:
    """x at `points` by cubic convolution.

    Args:
        x: (n, ..., size, size).
        points: (n, size * size, 2), or (1, ...) for all rows, in pixels from the centre as in `grid`.

    Returns:
        Of the shape and dtype of x; 0 is read beyond the border.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating point pixels to interpolate, got {x.dtype}: write x.float()")
    size = x.shape[-1]
    pixels = wide(x)
    column, row = _to_index(points.to(x.device).unbind(-1), size)
    column_0, row_0 = column.floor(), row.floor()
    total = torch.zeros((), device=x.device, dtype=pixels.dtype)
    for i in range(-1, 3):
        for j in range(-1, 3):
            r, c = row_0 + i, column_0 + j
            inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            weight = _keys(row - r) * _keys(column - c) * inside
            index = (r.clamp(0, size - 1) * size + c.clamp(0, size - 1)).long()
            shape = (len(weight), *[1] * (x.ndim - 3), size, size)
            total = total + weight.to(pixels.dtype).reshape(shape) * _gather(pixels, index)
    return total.to(x.dtype)


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2."""
    t = distance.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _to_index(point: tuple[Tensor, ...], size: int) -> tuple[Tensor, Tensor]:
    """(x, y) in pixels from the centre to (column, row)."""
    return point[0] + (size - 1) / 2, (size - 1) / 2 - point[1]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x (n, ..., size, size) read at flat pixel numbers (n, size * size)."""
    flat = x.flatten(-2)
    index = index.to(x.device).reshape(len(index), *[1] * (flat.ndim - 2), flat.shape[-1])
    return flat.gather(-1, index.expand_as(flat)).unflatten(-1, x.shape[-2:])


def check_grid(representation: Representation, group: Group, shape: torch.Size) -> None:
    """ValueError unless `group` turns the plane and the last two of `shape` are a square grid."""
    check_plane(representation, group)
    if len(shape) < 3 or shape[-1] != shape[-2]:
        raise ValueError(f"{representation!r} expects (batch, ..., size, size) with a square grid, got {tuple(shape)}")


def check_plane(representation: Representation, group: Group) -> None:
    """ValueError unless `group` turns the plane."""
    if group.space_dim != 2:
        raise ValueError(f"{representation!r} needs a group of the plane (SO(2), C4, D4), got {group}")
