"""Frames of a cloud of points: a few orientations that turn with it."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lightning_equiv.symmetrize.points import Cloud


def pca_frames(cloud: Cloud, reflections: bool, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""The principal axes of each input's points, with every choice of signs.

        C = sum_a q_a q_a^T = U diag U^T,    frames = { U S : S diagonal of +-1 },    det(U S) = 1 without reflections

    Args:
        cloud: the points q, n inputs in d dimensions.
        reflections: whether the group has any.
        tolerance: least gap between eigenvalues, relative to the largest one.

    Returns:
        (2^d or 2^(d - 1), n, d, d) matrices, whose columns are the axes, and (n,) whether an input has no frame: two
        eigenvalues are equal, as those of lines, squares and tetrahedra are.

    Reference:
        Puny, Atzmon, Smith, Misra, Grover, Ben-Hamu, Lipman. Frame Averaging for Invariant and Equivariant Network
        Design. ICLR 2022, arXiv 2110.03336.
    """
    covariance = cloud.total(cloud.x[..., :, None] * cloud.x[..., None, :])
    with torch.no_grad():
        values = torch.linalg.eigvalsh(covariance)
        degenerate = ~(values.diff(dim=-1).amin(-1) > tolerance * values[:, -1])  # also of NaN
    d = covariance.shape[-1]
    spread = torch.diag(torch.arange(1.0, d + 1, dtype=covariance.dtype, device=covariance.device))
    _, axes = torch.linalg.eigh(torch.where(degenerate[:, None, None], spread, covariance))  # its gradient is finite
    every = [s for s in itertools.product((1.0, -1.0), repeat=d) if reflections or math.prod(s) > 0]
    signs = torch.tensor(every, dtype=axes.dtype, device=axes.device)
    if not reflections:
        last = torch.linalg.det(axes).detach().sign()
        axes = torch.cat([axes[..., :-1], axes[..., -1:] * last[:, None, None]], dim=-1)
    return axes * signs[:, None, None, :], degenerate


def pair_frames(
    cloud: Cloud, reflections: bool, tolerance: float, power: float, most: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The orientations of pairs of points, with weights that vanish where these jump.

    In space R_ij has the axes of the Gram-Schmidt process on (q_i, q_j, q_i x q_j) and the weight |q_i x q_j|^p; it
    jumps only where q_i and q_j are parallel, and there its weight is 0. In the plane R_i has its first axis along q_i
    and the weight |q_i|^p. With reflections each is there a second time with its last axis inverted.

    Args:
        cloud: the points q, n inputs in d dimensions.
        reflections: whether the group has any.
        tolerance: an input whose largest |q_i x q_j| / sum |q|^2 is below has no frame: all its points lie on a line
            (all at the centre, in the plane).
        power: p.
        most: frames with the largest weights, max(0, w - w_next) for the next one's weight, so that the cut is
            continuous; None takes all.

    Returns:
        (K, n, d, d) matrices, (K, n) weights of sum 1, and (n,) whether an input has no frame.

    Reference:
        In the spirit of the weighted frames of Dym, Lawrence, Siegel. Equivariant Frames and the Impossibility of
        Continuous Canonicalization. ICML 2024, arXiv 2402.16077.
    """
    q = cloud.dense()  # (n, N, d)
    n, number, d = q.shape
    scale = q.square().sum((-1, -2))
    if d == 3:
        every = list(itertools.permutations(range(number), 2))
        pairs = torch.tensor(every, dtype=torch.long, device=q.device).reshape(-1, 2)
        i, j = pairs.unbind(1)
        first, second = q[:, i], q[:, j]
        size = torch.linalg.cross(first, second).square().sum(-1)  # (n, pairs) |q_i x q_j|^2
        floor = scale.square()
    else:
        first, second = q, q
        size, floor = q.square().sum(-1), scale
    reach = size.amax(-1) if size.shape[-1] else torch.zeros_like(scale)
    degenerate = ~((reach > tolerance**2 * floor) & (scale > 0))
    usable = size > torch.finfo(size.dtype).eps ** 2 * floor[:, None]
    weight = torch.where(usable, size, 1.0).pow(power / 2) * usable
    if most is not None and most < weight.shape[-1]:
        top, place = weight.topk(most + 1, dim=-1)
        weight, place = top[:, :-1] - top[:, -1:], place[:, :-1]
        first, second, usable = (
            a.gather(1, place[..., None].expand(-1, -1, d) if a.ndim == 3 else place) for a in (first, second, usable)
        )
        degenerate = degenerate | ~(weight.sum(-1) > tolerance * top.sum(-1))  # a tie, of a regular figure
    x, y = (torch.eye(d, dtype=q.dtype, device=q.device)[k] for k in (0, 1))
    first = torch.where(usable[..., None], first, x)
    e1 = first / first.norm(dim=-1, keepdim=True)
    if d == 3:
        second = torch.where(usable[..., None], second, y)
        rest = second - (second * e1).sum(-1, keepdim=True) * e1
        e2 = rest / rest.norm(dim=-1, keepdim=True)
        frames = torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-1)
    else:
        frames = torch.stack([e1, torch.stack([-e1[..., 1], e1[..., 0]], dim=-1)], dim=-1)
    if not weight.shape[-1]:  # a single point
        frames, weight = torch.eye(d, dtype=q.dtype, device=q.device).expand(n, 1, d, d), q.new_ones(n, 1)
    if reflections:
        flip = torch.ones(d, dtype=q.dtype, device=q.device)
        flip[-1] = -1
        frames, weight = torch.cat([frames, frames * flip], dim=1), torch.cat([weight, weight], dim=1)
    weight = torch.where(degenerate[:, None], 1.0, weight)
    return frames.transpose(0, 1), (weight / weight.sum(-1, keepdim=True)).T, degenerate


def gram_schmidt(vectors: Tensor, reflections: bool) -> Tensor:
    r"""(n, d, d) orthogonal matrices whose columns come of the Gram-Schmidt process on equivariant vectors.

    c(h x) = h c(x) for every h of the group where the vectors turn with x: for rotations d - 1 vectors are enough, the
    last axis is what makes the determinant 1; with reflections d are needed.

    Args:
        vectors: (n, d - 1 or more, d) for rotations, (n, d or more, d) with reflections; not on a line.
        reflections: whether the group has any.

    Raises:
        ValueError: too few vectors.

    Examples:
        >>> x = torch.randn(5, 2, 3, dtype=torch.float64)
        >>> bool(torch.linalg.det(gram_schmidt(x, reflections=False)).allclose(torch.ones(5, dtype=torch.float64)))
        True
    """
    d = vectors.shape[-1]
    needed = d if reflections else d - 1
    if vectors.ndim != 3 or vectors.shape[1] < needed:
        raise ValueError(f"expected {needed} equivariant vectors (n, {needed}, {d}), got shape {tuple(vectors.shape)}")
    axes: list[Tensor] = []
    for k in range(needed):
        v = vectors[:, k]
        for axis in axes:
            v = v - (v * axis).sum(-1, keepdim=True) * axis
        axes.append(v / v.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny))
    if not reflections:
        axes.append(torch.linalg.cross(*axes) if d == 3 else torch.stack([-axes[0][..., 1], axes[0][..., 0]], dim=-1))
    return torch.stack(axes, dim=-1)
