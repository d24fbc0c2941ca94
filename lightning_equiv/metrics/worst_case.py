"""The largest equivariance error: the input and the element for which it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, GroupElement
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.symmetry.call import TOTAL, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry

_FIRST_STEP = 0.25  # of the ascent: radians, or units of length


@dataclass(frozen=True)
class WorstCase:
    """The largest error |f(g x) - g f(x)| that was found for each of n inputs, and the element for which.

    Attributes:
        errors: (n,) in the unit of the output.
        elements: n elements, one for each input.
        sampled: (n,) the largest error among the sampled elements, before the ascent.
    """

    errors: Tensor
    elements: GroupElement
    sampled: Tensor

    @property
    def index(self) -> int:
        """The number of the worst input."""
        return int(self.errors.argmax())

    @property
    def element(self) -> GroupElement:
        """The element for which it is worst."""
        return self.elements[self.index]

    @property
    def error(self) -> float:
        """The largest error."""
        return float(self.errors.max())


def worst_case(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    steps: int = 12,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> WorstCase:
    r"""The largest |f(g x) - g f(x)| of each input, sought among sampled elements and then by ascent from the worst.

    The ascent goes in the Lie algebra: g is replaced by exp(+-h A) g for whichever generator A makes the error largest,
    and h is halved where none does. It needs no gradient of the network. What it finds is a lower bound of the largest
    error; a finite group has nothing to ascend in, and `num_samples=None` takes all of its elements.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        num_samples: elements drawn for each input; None takes every element of a finite group.
        steps: of the ascent, 2 dim runs of the network for all inputs each; 0 only samples.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces).

    Returns:
        The worst case of every input; a NaN error is not the largest.

    Examples:
        >>> symmetry = Symmetry("SO(2)", "1o", "1o")
        >>> shifted = lambda x: x + torch.tensor([1.0, 0.0, 0.0])  # |g c - c| is largest for half a turn: 2
        >>> worst = worst_case(shifted, torch.randn(4, 3), symmetry)
        >>> round(worst.error, 2), worst.element.matrix.round().int().tolist()
        (2.0, [[[-1, 0], [0, -1]]])
    """
    check_number("steps", steps, least=0, whole=True)
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        return ascend(measurement, measurement.elements(num_samples), steps)


def ascend(measurement: Measurement, elements: GroupElement, steps: int) -> WorstCase:
    """The worst of K n elements for each input, refined.

    Args:
        measurement: of a network's call.
        elements: K n of them, as `Measurement.elements` gives.
        steps: of the ascent.
    """
    n, group = measurement.num_inputs, measurement.group
    inputs = torch.arange(n, device=measurement.device)
    errors = _errors(measurement, elements)
    best, chosen = errors.max(0)
    sampled, worst = best, elements[chosen * n + inputs]
    step = torch.full((n,), _FIRST_STEP, device=measurement.device, dtype=torch.float64)
    basis = group.algebra(device=measurement.device)
    directions = torch.cat([basis.coefficients, -basis.coefficients])  # (2 dim, dim)
    for _ in range(steps if group.dim else 0):
        moves = (directions[:, None] * step[:, None]).flatten(0, 1)  # direction by direction, input by input
        tried = AlgebraElement(group, (moves,)).exp() @ worst.repeat(len(directions))
        errors = _errors(measurement, tried)
        reached, chosen = errors.max(0)
        better = reached > best
        both = GroupElement(
            group, tuple(torch.cat([a, b]) for a, b in zip(tried.coordinates, worst.coordinates, strict=True))
        )
        worst = both[torch.where(better, chosen * n + inputs, len(tried) + inputs)]
        best = torch.where(better, reached, best)
        step = torch.where(better, step, step / 2)
    return WorstCase(best, worst, sampled)


def _errors(measurement: Measurement, elements: GroupElement) -> Tensor:
    """(K, n) errors |d|; NaN is below all."""

    def errors(_: GroupElement, f_gx: BoundTree, g_fx: BoundTree) -> Tensor:
        left, right = f_gx.parts(), g_fx.parts()
        squares = f_gx.squared_norms({part: left[part] - right[part] for part in left})
        return squares[TOTAL].sqrt().unflatten(0, (-1, measurement.num_inputs))

    found = torch.cat(measurement.for_each_chunk(elements, errors))
    return torch.where(found.isnan(), -1.0, found)
