"""Lie algebras of matrices by their names: so(3), so(1,3), rotations about an axis, boosts, scalings."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_equiv.metrics.subgroups import direction_name

_SMALL = 0.05  # of a matrix of norm 1


def algebra_name(matrices: Tensor, translations: bool = False) -> str:
    """The name of the algebra that matrices (k, d, d) span, by its dimension and the signs of its Killing form."""
    k, d = matrices.shape[:2]
    if not k:
        return "none"
    if translations and bool((matrices[:, :, d].norm(dim=1) > _SMALL).any()):
        linear = int(torch.linalg.matrix_rank(matrices[:, :, :d].flatten(1), atol=_SMALL))
        return f"motions of dimension {k}, {k - linear} of them translations"
    matrices = matrices[:, :, :d]
    if k == 1:
        return {"rotation": "so(2)", "boost": "so(1,1)", "scaling": "scaling"}.get(_kind(matrices[0]), "one-parameter")
    if k == d * d:
        return f"gl({d})"
    negative, positive = _killing(matrices)
    known = {(3, 3, 0): "so(3)", (3, 1, 2): "sl(2)", (6, 3, 3): "so(1,3)", (6, 6, 0): "so(4)", (8, 3, 5): "sl(3)"}
    if (k, negative, positive) in known:
        return "so(1,2)" if (k, negative, positive, d) == (3, 1, 2, 3) else known[k, negative, positive]
    return f"algebra of dimension {k}"


def _killing(matrices: Tensor) -> tuple[int, int]:
    """How many negative and positive eigenvalues the Killing form tr(ad A ad B) has."""
    k = len(matrices)
    flat = matrices.flatten(1)
    bracket = torch.einsum("iab,jbc->ijac", matrices, matrices)
    bracket = (bracket - bracket.transpose(0, 1)).flatten(2)
    structure = bracket @ torch.linalg.pinv(flat)  # [A_i, A_j] = sum_l c_ijl A_l
    values = torch.linalg.eigvalsh(torch.einsum("iml,jlm->ij", structure, structure))
    size = values.abs().max().clamp_min(1e-300)
    if float(size) < 1e-6 * k:
        return 0, 0
    return int((values < -_SMALL * size).sum()), int((values > _SMALL * size).sum())


def _kind(a: Tensor) -> str:
    """What exp(t A) does, by the eigenvalues and the symmetric part of A."""
    d = len(a)
    values = torch.linalg.eigvals(a)
    if float(values.abs().max()) < _SMALL:
        return "shear"
    if float(values.real.abs().max()) < _SMALL * float(values.abs().max()):
        return "rotation"
    if float((a - a.T).norm()) < 2 * _SMALL:
        off = a - a.trace() / d * torch.eye(d, dtype=a.dtype)
        if float(off.norm()) < _SMALL * 2:
            return "scaling"
        return "boost" if abs(float(a.trace())) < _SMALL else "scaling"
    return "other"


def generator_name(a: Tensor, translations: bool = False) -> str:
    """What exp(t A) does in words: "rotation about (1, 2, 2)/3", "boost along (1, 1)/sqrt(2)", "scaling".

    Args:
        a: (d, d), or (d, d + 1) with a translation.
        translations: whether it has one.
    """
    d = a.shape[0]
    if translations:
        shift, a = a[:, d], a[:, :d]
        if float(a.norm()) < _SMALL:
            return f"translation along {_numbers(shift / shift.norm())}"
    kind = _kind(a)
    if kind == "rotation" and float((a + a.T).norm()) < 2 * _SMALL:
        if d == 2:
            return "rotation"
        if d == 3:
            axis = torch.stack([a[2, 1] - a[1, 2], a[0, 2] - a[2, 0], a[1, 0] - a[0, 1]])
            return f"rotation about {direction_name(axis)}"
    if kind in ("boost", "scaling"):
        values, vectors = torch.linalg.eigh((a + a.T) / 2)
        if kind == "scaling" and float((values - values.mean()).abs().max()) < 2 * _SMALL:
            return "scaling of all components"
        terms = [
            f"{float(v / values.abs().max()):+.2f} along {_numbers(u)}"
            for v, u in zip(values, vectors.T, strict=True)
            if abs(float(v)) > _SMALL
        ]
        return f"{kind}: {', '.join(terms)}"
    rows = "; ".join(" ".join(f"{v + 0.0:.2f}" for v in row) for row in a.tolist())
    return f"{kind if kind != 'other' else 'matrix'} [{rows}]"


def _numbers(v: Tensor) -> str:
    v = v * v[v.abs().argmax()].sign()
    return f"({', '.join(f'{c + 0.0:.2f}' for c in v.tolist())})"
