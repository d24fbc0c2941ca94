"""The largest eigenvalue of a loss's Hessian by products with it: no matrix is formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def largest_eigenvalue(
    loss: Tensor, parameters: Sequence[Tensor], start: Tensor, steps: int = 2
) -> tuple[Tensor, Tensor]:
    r"""The largest eigenvalue of the Hessian H of a loss, as far as some products with H come from a vector.

        lambda = max v^T H v  over v in span{s, H s, H^2 s, ..},  |v| = 1         one dimension for each product

    This is power iteration that makes the best of all its products (Lanczos' method): where the plain one tends to the
    eigenvalue of largest magnitude, be it negative as near a saddle, this tends to the largest, and sooner. lambda is
    never above it. Whoever passes on the vector that is returned goes on from there, and lambda never falls for one H.
    H v is the derivative of <dL/dp, v>: a product costs about two backward passes.

    Args:
        loss: a scalar with a graph that can be differentiated twice.
        parameters: p; those that the loss does not depend on add rows and columns of 0.
        start: (n,) s, of any length but 0, with n the numbers in all parameters.
        steps: products with H, at least 2, as one alone leaves the vector where it is.

    Returns:
        lambda, a scalar, NaN where H is not finite; and its v, of length 1, or the start where H is not finite.

    Raises:
        RuntimeError: something in the loss has no second derivative.

    Examples:
        >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = (p * p * torch.tensor([-2.0, 0.5])).sum()  # H = diag(-4, 1)
        >>> value, _ = largest_eigenvalue(loss, [p], torch.ones(2))
        >>> round(float(value), 3)
        1.0
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    _check_graph(gradients)
    Q, HQ = (start / start.norm())[None], start.new_zeros(0, len(start))  # an orthonormal basis in rows, and its image
    for step in range(steps):
        Hq = _product(gradients, parameters, Q[-1])
        HQ = torch.cat([HQ, Hq[None]])
        rest = Hq
        for _ in range(2):  # twice, for rounding
            rest = rest - (Q @ rest) @ Q
        length = rest.norm()
        if step == steps - 1 or not length > 1e-6 * Hq.norm():  # an invariant subspace, or not finite
            break
        Q = torch.cat([Q, rest[None] / length])
    T = Q @ HQ.mT
    if not T.isfinite().all():
        return T.new_full((), torch.nan), start
    values, vectors = torch.linalg.eigh((T + T.mT) / 2)
    v = vectors[:, -1] @ Q
    return values[-1], v / v.norm()


def _check_graph(gradients: Sequence[Tensor | None]) -> None:
    """RuntimeError where a gradient comes from an operation that is marked as `once_differentiable`.

    torch puts a node there that raises an error, but no path leads from it to the parameters: what is missing would be
    taken for 0.
    """
    nodes = [g.grad_fn for g in gradients if g is not None]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("an operation that is marked as once_differentiable")
        nodes.extend(below for below, _ in node.next_functions)


def _product(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], v: Tensor) -> Tensor:
    """H v of the gradients' graph."""
    parts = v.split([p.numel() for p in parameters])
    # a gradient that is constant has no graph
    pairs = [(g, part.view_as(g).to(g)) for g, part in zip(gradients, parts, strict=True) if g is not None]
    pairs = [(g, part) for g, part in pairs if g.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    of, along = zip(*pairs, strict=True)
    rows = torch.autograd.grad(of, parameters, along, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p) if row is None else row for row, p in zip(rows, parameters, strict=True)]
    return torch.cat([row.detach().flatten().to(v) for row in flat])
