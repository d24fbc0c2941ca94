"""The one comparison, f(g x) against g f(x), and the loss made of it.

This is the only place where the two sides are formed: what a metric measures and what a loss trains are the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import recording_paused

Distance = Callable[[Tensor, Tensor], Tensor]

_distances: dict[str, Distance] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "cross_entropy": nn.functional.cross_entropy,  # of logits and class labels
}


def compare(
    network: Callable[..., Any], call: BoundCall, g: GroupElement, f_x: BoundTree
) -> tuple[BoundTree, BoundTree]:
    """The two sides of the comparison, f(g x) and g f(x).

    K group elements for each of n inputs are folded into one batch of K n, in one call of the network.

    Args:
        network: f, called once.
        call: x, bound by the symmetry.
        g: K n elements; element k n + i moves input i for the k-th time.
        f_x: f(x), the output for the unmoved inputs; or labels to be moved in its place.

    Returns:
        f_gx and g_fx, each like f_x with K n rows in place of n.
    """
    times = len(g) // call.num_inputs
    args, kwargs = call.move(g, times)
    with recording_paused():
        f_gx = network(*args, **kwargs)
    return call.output(f_gx, times), f_x.move(g, times)


class NoGradientError(RuntimeError):
    """f(g x) has no gradient where f(x) has one."""


def equivariance_losses(
    network: Callable[..., Any],
    call: BoundCall,
    symmetry: Symmetry,
    *,
    anchor: BoundTree,
    distance: Distance,
    num_samples: int,
    detach_target: bool,
    generator: torch.Generator,
    labelled: Collection[str] | None = None,
    f_x: BoundTree | None = None,
    near: float | None = None,
) -> dict[str, Tensor]:
    """mean_i l( f(g_i x_i), g_i y_i ) of each output that is compared, by its dotted name.

    Args:
        network: f.
        call: x, bound by the symmetry.
        symmetry: whose elements are drawn.
        anchor: y: labels, or f(x).
        distance: l.
        num_samples: group elements for each input.
        detach_target: no gradient through g y.
        generator: whose random numbers.
        labelled: the outputs that are compared; None compares all.
        f_x: the output for the unmoved inputs, where f(g x) must have a gradient as that has.
        near: the length of elements near the identity, exp(near A) with |A| = 1, in the place of uniform ones.

    Raises:
        NoGradientError: f(x) has a gradient and f(g x) has none.
    """
    group, n = as_group(symmetry.group), num_samples * call.num_inputs
    if near is None:
        g = group.sample(n, generator=generator, device=call.device)
    else:
        g = nearby(group, near, n, generator=generator).to(call.device)
    f_gx, g_anchor = compare(network, call, g, anchor)
    pairs = {path: pair for path, pair in f_gx.pairs(g_anchor).items() if labelled is None or path in labelled}
    if f_x is not None:
        first = {t.path: t.x.requires_grad for t in f_x.tensors}
        if lost := [path for path, (a, _) in pairs.items() if first[path] > a.requires_grad]:
            raise NoGradientError(
                "expected the outputs of the network's second pass to have a gradient as those of the first, got none "
                f"for {', '.join(path or 'its output' for path in lost)}: a network that differentiates inside must "
                "build its graph whenever it is in training mode and gradients are enabled (create_graph=self.training)"
            )
    return {path: distance(a, b.detach() if detach_target else b) for path, (a, b) in pairs.items()}


def nearby(group: Group, length: float, n: int, *, generator: torch.Generator) -> GroupElement:
    """n elements exp(length A) with |A| = 1, uniformly drawn: rotations by `length` radians about axes at random.

    Of a group of rotations and translations A has parts of both, in radians and units of length.

    Raises:
        ValueError: a finite group, which has no element near the identity.

    Examples:
        >>> from lightning_equiv import SO3
        >>> g = nearby(SO3(), 0.1, 5, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(g.group.angle(g), torch.tensor(0.1, dtype=torch.float64))
        True
    """
    if not group.dim:
        raise ValueError(f"{group} is finite and has no elements near the identity: expected elements='haar'")
    a = torch.randn(n, group.dim, generator=generator, dtype=torch.float64)
    return AlgebraElement(group, (length * a / a.norm(dim=1, keepdim=True),)).exp()


def as_distance(loss: str | Distance) -> Distance:
    """The distance that a name stands for.

    Raises:
        ValueError: an unknown name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in _distances:
        raise ValueError(f"expected loss to be one of {sorted(_distances)} or a callable, got {loss!r}")
    return _distances[loss]
