"""Canonical poses: c(h x) = h c(x), given, learned, or found by optimisation over the group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement, element_dtype
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetrize.frames import gram_schmidt
from lightning_equiv.symmetrize.points import Points
from lightning_equiv.symmetrize.rules import Rule, Subgroup, rule_of
from lightning_equiv.symmetry.call import BoundCall
from lightning_equiv.symmetry.symmetry import Symmetry

Canonicaliser = Callable[..., GroupElement | Tensor]

_TOLERANCE = 1e-3  # of |c(g x) - g c(x)| in float32, whose rounding an ill-conditioned pose amplifies


class Moments:
    r"""A canonical pose of points without a network: the Gram-Schmidt process on sum_a |q_a|^(2 m) q_a, m = 1, 2, 3.

    Args:
        points: which input has them.
        reflections: whether the group has any.
        symmetry: of the network.
        network: whose arguments it is called with.
    """

    def __init__(self, points: Points, reflections: bool, symmetry: Symmetry, network: Callable[..., Any]) -> None:
        self.points, self.reflections, self.symmetry, self.network = points, reflections, symmetry, network

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """(n, d, d) matrices."""
        cloud = self.points.cloud(self.symmetry.bind(self.network, args, kwargs))
        cloud = cloud.centred() if self.points.shifted else cloud
        size = cloud.x.square().sum(-1, keepdim=True)
        mean = cloud.total(size) / cloud.total(torch.ones_like(size))
        scale = mean if cloud.owner is None else mean[cloud.owner]
        relative = size / scale[:, None].clamp_min(torch.finfo(size.dtype).tiny)
        return gram_schmidt(
            torch.stack([cloud.total(relative**m * cloud.x) for m in (1, 2, 3)], dim=1), self.reflections
        )


class OptimisedCanonicaliser(nn.Module):
    r"""The pose with the highest score: c(x) = argmax_g s(g^-1 x).

    It turns with x for any scores s, as a network trained by itself, or minus an energy: no equivariant network is
    needed. The candidates are the elements of a rule, so that it is exactly equivariant under a finite group, or the
    subgroup; under a continuous group as far as `steps` of ascent in the Lie algebra come to the same maximum. While
    training, gradients reach the scores straight through the choice, at the cost of all candidates.

    Args:
        score: s, of the network's signature, to (n,) or (n, 1).
        symmetry: of the network; its group is compact.
        subgroup: as of `Symmetrized`.
        degree: as of `Symmetrized`.
        steps: of ascent from the best candidate, for a continuous group; no gradient flows through them.

    Examples:
        >>> symmetry = Symmetry("C4", "1o", "1o")
        >>> c = OptimisedCanonicaliser(lambda x: x[:, 0], symmetry)  # the turn that brings x closest to the x axis
        >>> c(torch.tensor([[0.0, 2.0, 0.0]])).matrix[0]
        tensor([[ 0., -1.],
                [ 1.,  0.]], dtype=torch.float64)

    Reference:
        Panigrahi, Mondal. Improved Canonicalization for Model Agnostic Equivariance. arXiv 2405.14089.
    """

    def __init__(
        self,
        score: Callable[..., Tensor],
        symmetry: Symmetry,
        *,
        subgroup: Subgroup | None = None,
        degree: int | None = None,
        steps: int = 0,
    ) -> None:
        super().__init__()
        group = as_group(symmetry.group)
        if not group.compact:
            raise ValueError(f"expected a compact group to search, got {group}: its linear part is {group.linear_part}")
        check_number("steps", steps, least=0, whole=True)
        rule = rule_of(group, subgroup, degree)
        if not isinstance(rule, Rule):
            raise ValueError(f"{group} has too many elements to search: expected a group that can be listed")
        if steps and not group.dim:
            raise ValueError(f"{group} is finite, there is nothing to ascend: expected steps=0")
        self.score, self.symmetry, self.rule, self.steps = score, symmetry, rule, steps

    def candidates(self, *args: Any, **kwargs: Any) -> tuple[GroupElement, Tensor]:
        """K n elements, element k n + i for input i, and the softmax (K, n) of their scores."""
        call = self.symmetry.bind(self.score, args, kwargs)
        g = self._elements(call)
        return g, self._scores(call, g).softmax(0)

    def prior_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean cross entropy of the scores to the identity, the pose of the training data."""
        call = self.symmetry.bind(self.score, args, kwargs)
        g = self._elements(call)
        n, identity = call.num_inputs, g.group.identity(device=g.device)
        first = [
            (a[::n] - b).abs().reshape(len(g) // n, -1).sum(-1) < 1e-9
            for a, b in zip(g.coordinates, identity.coordinates, strict=True)
        ]
        place = torch.stack(first).all(0)
        if not bool(place.any()):
            raise ValueError("the candidates do not hold the identity: take a subgroup in the place of a quadrature")
        return -self._scores(call, g).log_softmax(0)[place].mean()

    def forward(self, *args: Any, **kwargs: Any) -> GroupElement:
        """n elements."""
        call = self.symmetry.bind(self.score, args, kwargs)
        n, g = call.num_inputs, self._elements(call)
        scores = self._scores(call, g)
        best = g[scores.argmax(0) * n + torch.arange(n, device=scores.device)]
        return best if not self.steps else self._ascended(call, best)

    def _elements(self, call: BoundCall) -> GroupElement:
        elements, n = self.rule.elements.to(call.device), call.num_inputs
        return elements[torch.arange(len(elements), device=elements.device).repeat_interleave(n)]

    def _scores(self, call: BoundCall, g: GroupElement) -> Tensor:
        """(K, n) s(g^-1 x)."""
        times = len(g) // call.num_inputs
        args, kwargs = call.move(g.inverse(), times)
        scores = self.score(*args, **kwargs)
        if scores.numel() != len(g):
            raise ValueError(f"expected one score for each of {len(g)} inputs, got shape {tuple(scores.shape)}")
        return scores.reshape(times, call.num_inputs).to(element_dtype(scores.device))

    def _ascended(self, call: BoundCall, g: GroupElement) -> GroupElement:
        """Steps along the gradient, longer after one that helped and shorter after one that did not."""
        group, n = g.group, call.num_inputs
        length = torch.full((n, 1), 0.2, dtype=torch.float64, device=g.device)
        with torch.enable_grad():
            for _ in range(self.steps):
                a = torch.zeros(n, group.dim, dtype=torch.float64, device=g.device, requires_grad=True)
                here = self._scores(call, g @ AlgebraElement(group, (a,)).exp())[0]
                (slope,) = torch.autograd.grad(here.sum(), a)
                step = length * slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-30)
                with torch.no_grad():
                    tried = g @ AlgebraElement(group, (step,)).exp()
                    better = self._scores(call, tried)[0] > here
                    pairs = zip(tried.coordinates, g.coordinates, strict=True)
                    own = (better.reshape(-1, *[1] * (c.ndim - 1)) for c in g.coordinates)
                    g = GroupElement(
                        group, tuple(torch.where(m, new, old) for m, (new, old) in zip(own, pairs, strict=True))
                    )
                    length = torch.where(better[:, None], 1.5 * length, 0.4 * length)
        return g


def pose_prior(pose: GroupElement) -> Tensor:
    """The mean of |R - 1|^2 (Frobenius) over n poses: 0 where the canonical pose is the data's own."""
    matrix = pose.matrix
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (matrix - eye).square().sum((-1, -2)).mean()


def elements_of(pose: Any, symmetry: Symmetry, n: int) -> GroupElement:
    """What a canonicaliser gave, elements or matrices, as n elements of the group or of its linear part.

    Raises:
        ValueError: another number, or of another group.
    """
    group = as_group(symmetry.group)
    linear = cast("Group", group.linear_part)
    if isinstance(pose, Tensor) and linear is not None and pose.shape == (n, linear.space_dim, linear.space_dim):
        pose = GroupElement(linear, (pose.to(element_dtype(pose.device)),))
    if not isinstance(pose, GroupElement) or pose.group not in (group, linear) or len(pose) != n:
        got = f"a tensor of shape {tuple(pose.shape)}" if isinstance(pose, Tensor) else repr(pose)
        raise ValueError(
            f"expected the canonicaliser to give {n} elements of {linear}, one for each input, or their matrices, "
            f"got {got}"
        )
    return pose


def check_canonicaliser(canonicaliser: Canonicaliser, symmetry: Symmetry, call: BoundCall) -> None:
    """ValueError unless c(h x) = h c(x) for one element h for each input of a call.

    The h of one that searches candidates are of these: under others it is equivariant only as far as the search goes.
    """
    group, n = as_group(symmetry.group), call.num_inputs
    generator = torch.Generator().manual_seed(0)
    if isinstance(canonicaliser, OptimisedCanonicaliser):
        elements = canonicaliser.rule.elements
        h = elements[torch.randint(len(elements), (n,), generator=generator)].to(call.device)
    else:
        h = group.sample(n, generator=generator, device=call.device)
    with torch.no_grad():
        args, kwargs = call.arguments()
        c = elements_of(canonicaliser(*args, **kwargs), symmetry, n)
        args, kwargs = call.move(h)
        c_h = elements_of(canonicaliser(*args, **kwargs), symmetry, n)
    turned = h if c.group == group else GroupElement(c.group, (h.matrix,))  # of SE(3), say, without its translation
    expected = turned @ c
    errors = [
        (a.double() - b.double()).abs().reshape(n, -1).amax(1)
        for a, b in zip(c_h.coordinates, expected.coordinates, strict=True)
    ]
    worst = float(torch.stack(errors).amax(0).median())
    if not worst < _TOLERANCE:
        raise ValueError(
            f"the canonicaliser is not equivariant: expected c(h x) = h c(x), got a difference of {worst:.2g} in the "
            "median input. Its vectors must turn with the input (an equivariant network, then gram_schmidt)"
        )
