"""A batch of matrices acting along one dimension of a tensor, and the checks of shape that go before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_equiv.groups.group import Group


def apply_matrix(matrix: Tensor, x: Tensor, dim: int = -1, translation: Tensor | None = None) -> Tensor:
    """M x + t along one dimension.

    Args:
        matrix: (n, d, d), or (1, d, d) for all rows of x.
        x: (n, ...) with d components along `dim`.
        dim: which dimension holds the components.
        translation: (n, d), or (1, d).

    Returns:
        Of the shape, device and dtype of x; computed in true float32 at least, rounded once.

    Raises:
        ValueError: x is not floating point, or has another number of rows.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating point numbers to move, got {x.dtype}: write x.float()")
    if len(matrix) not in (1, len(x)):
        raise ValueError(f"expected 1 or {len(x)} group elements for {len(x)} rows, got {len(matrix)}")
    work = product_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        matrix = matrix.to(device=x.device, dtype=work)
        rows = x.to(work).movedim(dim, -1)
        shape = rows.shape
        rest = math.prod(shape[:-1]) // max(1, len(matrix))
        rows = rows.reshape(len(matrix), rest, shape[-1])  # "n rest d"
        moved = torch.bmm(rows, matrix.mT)  # (M x)_i = sum_j M_ij x_j
        if translation is not None:
            moved = moved + translation.to(device=x.device, dtype=work)[:, None]
        return moved.reshape(shape).movedim(-1, dim).to(x.dtype)


def check_dim(representation: object, shape: torch.Size, dim: int, expected: int) -> None:
    """ValueError unless a tensor of `shape` has `expected` components along `dim`."""
    if not -len(shape) < dim < len(shape) or dim == 0 or shape[dim] != expected:
        raise ValueError(
            f"{representation!r} expects {expected} components along dimension {dim}, after a first dimension that is "
            f"the batch, got a tensor of shape {tuple(shape)}"
        )


def check_vectors(representation: object, group: Group, shape: torch.Size, dim: int) -> None:
    """ValueError unless a tensor of `shape` has components along `dim` that the matrices of `group` can move."""
    fits = group.space_dim is not None and -len(shape) < dim < len(shape) and shape[dim] == group.space_dim
    check_dim(representation, shape, dim, group.space_dim if fits and group.space_dim else 3)


def _matmul_is_exact() -> bool:
    """Whether float32 matmuls are done in float32."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend, by the newer settings, which this question does not cover
        return False


torch.compiler.assume_constant_result(_matmul_is_exact)


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a product is taken: float64 where float32 would be TF32 or bfloat16 (errors of 1e-3 and 2e-2)."""
    return torch.float64 if dtype == torch.float64 or not _matmul_is_exact() else torch.float32


def wide(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
