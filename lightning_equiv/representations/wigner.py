r"""Wigner-D matrices of every degree, straight from the entries of a rotation matrix.

    D^0(R) = 1,    D^1(R) = R,    D^l(R) = Q_l^T (D^{l-1}(R) ⊗ R) Q_l

Q_l, of shape (3 (2l - 1), 2l + 1), has orthonormal columns: sqrt(2l + 1) times the Wigner 3j symbols (l - 1, 1, l) of
e3nn, whose real basis this is. Each entry of D^l is a homogeneous polynomial of degree l in the entries of R: no Euler
angles, no matrix exponential, no singular direction, smooth everywhere. Homogeneity gives the improper matrices too,
D^l(-R) = (-1)^l D^l(R), so that for every R in O(3) the irrep (l, p) is

    D^{l,p}(R) = D^l(R)             if p = (-1)^l   (scalar 0e, vector 1o, 2e, 3o, ...)
    D^{l,p}(R) = D^l(R) det(R)      otherwise       (pseudoscalar 0o, pseudovector 1e, 2o, 3e, ...)

and only the second kind needs a determinant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple, ParamSpec, TypeVar, cast

import torch
from e3nn import o3
from torch import Tensor

from lightning_equiv.groups.group import element_dtype
from lightning_equiv.representations.action import product_dtype

_PRODUCT_DEGREE = (
    3  # up to here one matmul on all products beats the two-sided form: 3 x faster at l = 2, even at l = 3
)

# Matrices of at most so many rows are multiplied entry by entry under torch.compile: inductor unrolls sums of 8 terms.
_UNROLLED = 7

# Rows at a time on the CPU where no graph is kept: the blocks stay in the cache and fresh pages are touched once.
_CHUNK = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _constant(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Computed once for given arguments, and a constant to torch.compile, which would look through a bare lru_cache."""
    cached = cast(Callable[_P, _T], lru_cache(maxsize=None)(function))

    def constant(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return cached(*args, **kwargs)

    torch.compiler.assume_constant_result(constant)
    return constant


def wigner_D(degree: int, rotation: Tensor) -> Tensor:
    r"""Real Wigner-D matrix D^l(R), in e3nn's convention.

        D^l(R) = Q_l^T (D^{l-1}(R) ⊗ R) Q_l

    Q_l is made of Wigner 3j symbols, see the head of this file. Computed in float64, rounded once to the dtype of
    `rotation`; differentiable as often as one likes. For a matrix with det R = -1 it is the irrep (l, (-1)^l).

    Args:
        degree: l >= 0.
        rotation: R, (..., 3, 3), acting on column vectors (x, y, z).

    Returns:
        D^l(R), (..., 2l + 1, 2l + 1), with the dtype and device of `rotation`; R itself for l = 1.

    Raises:
        ValueError: a negative degree, or a tensor that does not end in (3, 3).

    Examples:
        >>> quarter_turn_about_z = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> wigner_D(2, quarter_turn_about_z).diagonal().round().long()
        tensor([ 0, -1,  0,  0,  0])

    Reference:
        M. Geiger, T. Smidt. e3nn: Euclidean Neural Networks. arXiv:2207.09453, 2022.
        J. Ivanic, K. Ruedenberg. Rotation Matrices for Real Spherical Harmonics: Direct Determination by Recursion.
        J. Phys. Chem. 100, 6342, 1996.
    """
    return wigner_D_list(degree, rotation)[degree]


def wigner_D_list(max_degree: int, rotation: Tensor) -> list[Tensor]:
    """All of D^0(R), ..., D^L(R) for the price of the recursion to D^L; see `wigner_D`.

    Args:
        max_degree: L >= 0.
        rotation: R, (..., 3, 3).

    Returns:
        L + 1 tensors; number l is D^l(R), (..., 2l + 1, 2l + 1).

    Raises:
        ValueError: a negative degree, or a tensor that does not end in (3, 3).

    Examples:
        >>> [tuple(D.shape) for D in wigner_D_list(2, torch.eye(3).repeat(10, 1, 1))]
        [(10, 1, 1), (10, 3, 3), (10, 5, 5)]
    """
    _check_degree(max_degree)
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"expected rotation matrices of shape (..., 3, 3), got {tuple(rotation.shape)}")
    batch = rotation.shape[:-2]
    matrices = [rotation.new_ones(*batch, 1, 1), rotation][: max_degree + 1]
    if max_degree < 2:
        return matrices
    # float64 whatever the dtype in: autocast and reduced-precision matmuls leave it alone, and errors do not pile up.
    R = D = rotation.reshape(-1, 3, 3).to(element_dtype(rotation.device))
    for degree in range(2, max_degree + 1):
        D = _next_degree(degree, D, R)
        matrices.append(D.reshape(*batch, 2 * degree + 1, 2 * degree + 1).to(rotation.dtype))
    return matrices


def wigner_generators(degree: int) -> Tensor:
    """Derivatives of D^l at the identity, along the rotations about x, y and z.

        J^l_k = d/dt D^l(exp(t L_k)) at t = 0,    (L_k)_{ij} = -ε_{kij}
        J^l_k = Q_l^T (J^{l-1}_k ⊗ 1 + 1 ⊗ L_k) Q_l

    Args:
        degree: l >= 0.

    Returns:
        J^l_x, J^l_y, J^l_z, antisymmetric, (3, 2l + 1, 2l + 1), float64, on the CPU.

    Raises:
        ValueError: a negative degree.

    Examples:
        >>> wigner_generators(1)[2]
        tensor([[ 0., -1.,  0.],
                [ 1.,  0.,  0.],
                [ 0.,  0.,  0.]], dtype=torch.float64)
    """
    _check_degree(degree)
    return _generators(degree, torch.device("cpu"), torch.float64).clone()


def rotate_irreps(matrix: Tensor, x: Tensor, irreps: o3.Irreps | str, dim: int = -1) -> Tensor:
    """Features in a direct sum of irreps, moved by orthogonal matrices, block by block.

        x = (+)_l x_l  ->  (+)_l D^{l,p}(R) x_l

    Row b of x is moved by matrix b. The dense matrix of the whole sum is never formed; "0e" blocks are copied.

    Args:
        matrix: R in O(3), (B, 3, 3), or (1, 3, 3) for all rows of x.
        x: (B, ...), floating point.
        irreps: e3nn's irreps and layout, such as "16x0e+8x1o+4x2e".
        dim: which dimension of x holds them, not the first; 2 for vector-neuron features (B, C, 3, N).

    Returns:
        Shape, dtype and device of x. D is computed in float64 and rounded once; with x in half precision the product is
        taken in float32 and rounded once.

    Raises:
        ValueError: shapes that do not fit each other or the irreps, or x not floating point.

    Examples:
        >>> quarter_turn_about_z = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> rotate_irreps(quarter_turn_about_z, torch.tensor([[7.0, 1.0, 0.0, 0.0]]), "0e+1o")
        tensor([[7., 0., 1., 0.]])
    """
    layout = _layout(irreps)
    dim = _check(matrix, (3, 3), x, irreps, layout.width, dim)
    if not layout.moved_by_matrix:
        return x.clone()
    R = matrix.to(torch.promote_types(matrix.dtype, x.dtype))
    if len(R) == len(x) > _CHUNK and _is_plain(R, x):
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows in (slice(i, i + _CHUNK) for i in range(0, len(x), _CHUNK)):
            out[rows] = rotate_irreps(R[rows], x[rows], irreps, dim)
        return out
    with _outside_autocast(x.device):
        D = wigner_D_list(layout.max_degree, R)
        sign = _sign_of_determinant(R) if layout.has_pseudo else None
        parts = list(x.split(layout.sizes, dim))
        for i, block in enumerate(layout.blocks):
            if block.pseudo and sign is not None:
                parts[i] = _multiply(D[block.degree] * sign, parts[i], block.mul, dim)
            elif block.degree > 0:
                parts[i] = _multiply(D[block.degree], parts[i], block.mul, dim)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _is_plain(*tensors: Tensor) -> bool:
    """Whether these are numbers on the CPU that nothing differentiates, maps or traces."""
    return (
        not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and all(type(t) is Tensor and t.device.type == "cpu" for t in tensors)
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
        and not any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


def rotate_irreps_infinitesimal(omega: Tensor, x: Tensor, irreps: o3.Irreps | str, dim: int = -1) -> Tensor:
    """Derivative of `rotate_irreps` at the identity, along a rotation vector.

        x = (+)_l x_l  ->  (+)_l (Σ_k ω_k J^l_k) x_l   =   d/dt rotate_irreps(exp(t Σ_k ω_k L_k), x) at t = 0

    Args:
        omega: ω, (B, 3), axis times angular velocity in radians, or (1, 3) for all rows of x.
        x: (B, ...), floating point.
        irreps: e3nn's irreps and layout.
        dim: which dimension of x holds them, not the first.

    Returns:
        Shape, dtype and device of x; 0 for scalars and pseudoscalars.

    Raises:
        ValueError: shapes that do not fit each other or the irreps, or x not floating point.

    Examples:
        >>> about_z = torch.tensor([[0.0, 0.0, 1.0]])
        >>> rotate_irreps_infinitesimal(about_z, torch.tensor([[7.0, 1.0, 0.0, 0.0]]), "0e+1o")
        tensor([[0., 0., 1., 0.]])
    """
    layout = _layout(irreps)
    dim = _check(omega, (3,), x, irreps, layout.width, dim)
    if layout.max_degree == 0:
        return torch.zeros_like(x)
    wide = omega.to(element_dtype(omega.device))
    with _outside_autocast(x.device):
        parts = list(x.split(layout.sizes, dim))
        for i, block in enumerate(layout.blocks):
            if block.degree == 0:
                parts[i] = torch.zeros_like(parts[i])
            else:
                J = torch.einsum("bk,kij->bij", wide, _generators(block.degree, wide.device, wide.dtype))
                parts[i] = _multiply(J, parts[i], block.mul, dim)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _multiply(matrices: Tensor, x: Tensor, mul: int, dim: int) -> Tensor:
    """y[b, .., u i, ..] = sum_j matrices[b, i, j] x[b, .., u j, ..], in x's dtype, rounded once."""
    size = matrices.shape[-1]
    before, after = mul * math.prod(x.shape[1:dim]), math.prod(x.shape[dim + 1 :])
    matrices, wide = matrices.to(product_dtype(x.dtype)), x.to(product_dtype(x.dtype))
    if size <= _UNROLLED and torch.compiler.is_compiling():
        # Fused with what stands around it, and the product is never stored: 1.0 to 2.0 x as fast as a compiled bmm.
        y = (matrices[:, None, :, :, None] * wide.reshape(x.shape[0], before, 1, size, after)).sum(3)
    elif after == 1:
        # Batched matmul of the raw block: on the CPU 4 x faster than sums over strided components, 20 x than an einsum.
        rows = wide.reshape(x.shape[0], before, size)
        y = torch.bmm(rows, matrices.mT.expand(x.shape[0], size, size))
    else:
        y = matrices[:, None] @ wide.reshape(x.shape[0], before, size, after)
    return y.to(x.dtype).reshape(x.shape)


def _next_degree(degree: int, D: Tensor, R: Tensor) -> Tensor:
    """D^l, (B, 2l + 1, 2l + 1), from D^{l-1} and R, (B, 3, 3)."""
    size, low = 2 * degree + 1, 2 * degree - 1
    if degree <= _PRODUCT_DEGREE:
        # D^l[i,k] = sum_abmn (D[a,b] R[m,n]) (Q[am,i] Q[bn,k])
        (kernel,) = _couplings(degree, D.device, D.dtype)
        products = D.reshape(-1, low * low, 1) * R.reshape(-1, 1, 9)
        return (products.reshape(-1, low * low * 9) @ kernel).reshape(-1, size, size)
    # D^l[i,k] = sum_an (sum_m Q[am,i] R[m,n]) (sum_b D[a,b] Q[bn,k])
    left, right = _couplings(degree, D.device, D.dtype)
    return torch.bmm((left @ R).reshape(-1, size, low * 3), (D @ right).reshape(-1, low * 3, size))


@_constant
def _couplings(degree: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The constants of `_next_degree`, made once for each device."""
    size, low = 2 * degree + 1, 2 * degree - 1
    # Constants outlive the context they are first asked for in: inference mode, or a default device such as "meta".
    with torch.inference_mode(False), torch.device("cpu"):
        Q = _clebsch_gordan(degree)
        if degree <= _PRODUCT_DEGREE:
            kernel = torch.einsum("ami,bnk->abmnik", Q, Q).reshape(low * low * 9, size * size)
            return (kernel.to(device, dtype),)
        left = Q.permute(2, 0, 1).reshape(size * low, 3)
        right = Q.reshape(low, 3 * size)
        return left.to(device, dtype), right.to(device, dtype)


@_constant
def _generators(degree: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The constants of `wigner_generators`, made once for each device."""
    with torch.inference_mode(False), torch.device("cpu"):
        e = torch.eye(3, dtype=torch.float64)
        L: Tensor = torch.linalg.cross(e[None], e[:, None])  # [k, i, :] = e_i × e_k
        J = L
        if degree == 0:
            return torch.zeros(3, 1, 1, device=device, dtype=dtype)
        for l in range(2, degree + 1):
            Q = _clebsch_gordan(l)
            J = torch.einsum("ami,kab,bmj->kij", Q, J, Q) + torch.einsum("ami,kmn,anj->kij", Q, L, Q)
        return J.to(device, dtype)


def _clebsch_gordan(degree: int) -> Tensor:
    """Q_l[a, m, i], (2l - 1, 3, 2l + 1), float64: orthonormal in i."""
    Q: Tensor = math.sqrt(2 * degree + 1) * o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64)
    return Q


class _Block(NamedTuple):
    """`mul` neighbouring irreps (l, p); `pseudo` where p is not (-1)^l."""

    mul: int
    degree: int
    pseudo: bool


class _Layout(NamedTuple):
    """What `rotate_irreps` asks of irreps."""

    blocks: tuple[_Block, ...]
    sizes: list[int]
    width: int
    max_degree: int
    has_pseudo: bool
    moved_by_matrix: bool


@_constant
def _layout(irreps: o3.Irreps | str) -> _Layout:
    try:
        merged = o3.Irreps(irreps).simplify()  # neighbours of one kind are one block, and go in one matmul
    except (ValueError, AssertionError):
        raise ValueError(f"expected irreps such as '16x0e+8x1o', got {irreps!r}") from None
    blocks = tuple(_Block(mul, ir.l, ir.p != (-1) ** ir.l) for mul, ir in merged)
    sizes = [block.mul * (2 * block.degree + 1) for block in blocks]
    max_degree = max((block.degree for block in blocks), default=0)
    has_pseudo = any(block.pseudo for block in blocks)
    return _Layout(blocks, sizes, sum(sizes), max_degree, has_pseudo, max_degree > 0 or has_pseudo)


def _sign_of_determinant(R: Tensor) -> Tensor:
    """(B, 1, 1): +1 or -1. Its gradient is 0, as it should be on O(3), and pseudoscalars flip without rounding."""
    triple: Tensor = (torch.linalg.cross(R[:, 0], R[:, 1]) * R[:, 2]).sum(-1)
    return triple.sign()[:, None, None]


def _check(acting: Tensor, shape: Sequence[int], x: Tensor, irreps: o3.Irreps | str, width: int, dim: int) -> int:
    """`dim` counted from the front, or what is wrong."""
    if acting.shape[1:] != tuple(shape) or acting.ndim != len(shape) + 1:
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"expected group elements of shape ({expected}), got {tuple(acting.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected floating point features, got {x.dtype}: write x.float()")
    place = dim if dim >= 0 else dim + x.ndim
    if not 0 < place < x.ndim or x.shape[place] != width:
        raise ValueError(
            f"expected {width} components ({irreps}) in dimension {dim}, after a first dimension that is the batch, "
            f"got a tensor of shape {tuple(x.shape)}"
        )
    if acting.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"expected 1 or {x.shape[0]} group elements for {x.shape[0]} rows, got {acting.shape[0]}")
    return place


def _check_degree(degree: int) -> None:
    if degree < 0:
        raise ValueError(f"expected a degree l >= 0, got {degree}")


def _outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()  # 3 us less than to disable it once more
    return torch.autocast(device.type, enabled=False)
