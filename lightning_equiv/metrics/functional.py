"""The equivariance error: f(g x) against g f(x), for sampled or given group elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.symmetry.call import TOTAL, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry

Kind = Literal["relative", "absolute", "orbit_mean", "max"]


@overload
def equivariance_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    elements: GroupElement | None = None,
    kind: Kind = "relative",
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[False] = False,
    needs_grad: bool = False,
) -> Tensor: ...


@overload
def equivariance_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    elements: GroupElement | None = None,
    kind: Kind = "relative",
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[True],
    needs_grad: bool = False,
) -> dict[str, Tensor]: ...


@overload
def equivariance_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    elements: GroupElement | None = None,
    kind: Kind = "relative",
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool,
    needs_grad: bool = False,
) -> Tensor | dict[str, Tensor]: ...


def equivariance_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    elements: GroupElement | None = None,
    kind: Kind = "relative",
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool = False,
    needs_grad: bool = False,
) -> Tensor | dict[str, Tensor]:
    r"""How far a network is from equivariant, for each input.

    With K group elements g per input x, and d = f(g x) - g f(x), in the L2 norm of the whole output:

        relative     sqrt( mean_g |d|^2 / |f(x)|^2 )     0: equivariant; about sqrt(2): as far as two unrelated outputs
        absolute     mean_g |d|                          in the unit of the output
        orbit_mean   | mean_g d |                        0 does not imply equivariance
        max          max_g |d|

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        num_samples: K, elements drawn for each input; None takes every element of a finite group.
        elements: these, each for every input, in the place of drawn ones: the error at an angle, of a reflection.
        kind: which error.
        chunk_size: most inputs in one call of the network, never fewer than the batch itself; None takes all K n at
            once. "auto" takes as many as are fast, which is found out while they are measured and remembered with the
            network, and as fit into memory. Figures are the same but for the rounding of the network's own arithmetic.
        generator: whose random numbers.
        per_irrep: also the error of each part of the output by itself, see Returns.
        needs_grad: the network differentiates inside (conservative forces): run it with gradients enabled.

    Returns:
        (n,) errors, one an input (a graph), on the device of the output; 0 for an exactly equivariant network.
        With `per_irrep` a dict from "total" and the parts ("0e", "1o", or "name.1o" for nested outputs) to these.

    Raises:
        ValueError: the symmetry does not mirror the call or the output; an empty batch; an unknown kind; elements of
            another group.
        torch.OutOfMemoryError: one element for each input is too much; larger chunks are halved until they fit.

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> float(equivariance_error(lambda x: 2 * x, torch.randn(5, 3), symmetry).max()) < 1e-6
        True
        >>> float(equivariance_error(lambda x: x + 1, torch.randn(5, 3), symmetry).min()) > 0.01
        True
        >>> half_turn = symmetry.group.element(torch.diag(torch.tensor([-1.0, -1.0, 1.0])))
        >>> x = torch.tensor([[0.0, 0.0, 2.0]])
        >>> equivariance_error(lambda x: x + torch.tensor([1.0, 0.0, 0.0]), x, symmetry, elements=half_turn)
        tensor([0.8944])

    Reference:
        Elhag, Rusch, Di Giovanni, Bronstein. Relaxed Equivariance via Multitask Learning. arXiv 2410.17878.
    """
    check_kind(kind)
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        sums = error_sums(measurement, measurement.elements(num_samples, elements), kind)
    errors = {part: reduce_sums(*pair, kind).to(measurement.dtype) for part, pair in sums.items()}
    return errors if per_irrep else errors[TOTAL]


def reduce_sums(numerator: Tensor, denominator: Tensor, kind: Kind) -> Tensor:
    """The error from what `error_sums` gives, for one input or summed over many; 0 / 0 is 0."""
    error = torch.where(numerator == 0, 0.0, numerator / denominator)
    return error.sqrt() if kind == "relative" else error


def error_sums(measurement: Measurement, elements: GroupElement, kind: Kind) -> dict[str, tuple[Tensor, Tensor]]:
    """Numerator and denominator (n,), (n,) of `equivariance_error` per input, for the total and every output part.

    Numerators and denominators of many batches can be summed (or, for "max", their maximum taken) and then reduced.
    They are float64 where the device has it, whatever the network computes in.

    Args:
        measurement: of a network's call.
        elements: K n of them, as `Measurement.elements` gives.
        kind: which error.
    """
    check_kind(kind)
    n, f_x = measurement.num_inputs, measurement.f_x
    sums: dict[str, Tensor] = {}

    def figure(_: GroupElement, f_gx: BoundTree, g_fx: BoundTree) -> dict[str, Tensor]:
        nonlocal sums
        left, right = f_gx.parts(), g_fx.parts()
        d = {part: left[part] - right[part] for part in left}
        if kind == "orbit_mean":  # added one after the other, so that chunks of any size round alike
            draws = {part: x.unflatten(0, (f_gx.inputs.num // n, -1)) for part, x in d.items()}
            sums = {part: functools.reduce(Tensor.add, x, sums.get(part, x.new_zeros(()))) for part, x in draws.items()}
            return {}
        return {part: square.unflatten(0, (-1, n)) for part, square in f_gx.squared_norms(d).items()}

    chunks = measurement.for_each_chunk(elements, figure)
    if kind == "orbit_mean":
        means = {part: x / (len(elements) // n) for part, x in sums.items()}
        squares = {part: square[None] for part, square in f_x.squared_norms(means).items()}
    else:
        squares = {part: torch.cat([c[part] for c in chunks]) for part in chunks[0]}  # (K, n)
    norms = f_x.squared_norms(measurement.parts)
    ones = torch.ones_like(norms[TOTAL])
    if kind == "relative":
        return {part: (square.mean(0), norms[part]) for part, square in squares.items()}
    if kind == "max":
        return {part: (square.amax(0).sqrt(), ones) for part, square in squares.items()}
    return {part: (square.sqrt().mean(0), ones) for part, square in squares.items()}


def check_kind(kind: str) -> None:
    """ValueError unless there is such an error."""
    if kind not in get_args(Kind):
        raise ValueError(f"expected kind to be one of {get_args(Kind)}, got {kind!r}")
