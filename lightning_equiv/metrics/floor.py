"""The noise floor of a measurement: what rounding alone makes of a network's equivariance error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.interval import Interval, interval
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.orbit import Orbit, exact, orbit
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree, map_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class NoiseFloor:
    r"""The error that rounding makes, beside that of the network, per input.

    With w and w' the changes of the output in the network's own precision and in float64, for the same elements:

        floor^2 = sum_x mean_g |w - w'|^2 / sum_x |f(x)|^2,      exact^2 = sum_x mean_g |w'|^2 / sum_x |f(x)|^2

    A network whose error is rounding has `error` about as large as `floor` and an `exact` that is far smaller; how far
    depends on constants that it holds in float32 (Clebsch-Gordan coefficients), which are rounded in the copy, too. The
    elements are rounded to float64 themselves: what moving f(x) there and back changes is part of the floor.

    Attributes:
        rounding: (n,) mean_g |w - w'|^2.
        in_float64: (n,) mean_g |w'|^2.
        own: (n,) mean_g |w|^2, for the same elements.
        norm: (n,) |f(x)|^2.
        parts: the same of every part of the output, by its name.
    """

    rounding: Tensor
    in_float64: Tensor
    own: Tensor
    norm: Tensor
    parts: Mapping[str, NoiseFloor] = field(default_factory=dict)

    @property
    def floor(self) -> Interval:
        """The relative error that rounding makes."""
        return interval(self.rounding, self.norm, root=True)

    @property
    def exact(self) -> Interval:
        """The relative equivariance error in float64."""
        return interval(self.in_float64, self.norm, root=True)

    @property
    def error(self) -> Interval:
        """The relative equivariance error in the network's own precision."""
        return interval(self.own, self.norm, root=True)


def noise_floor(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> NoiseFloor:
    """What rounding makes of a network's equivariance error: the same run in float64, and the difference.

    For a network that is float64 already, the difference to float32 in proportion of their roundings. What resampling
    loses, on images turned by other than right angles, is no rounding: measure a network that is equivariant by
    construction on the same images for that.

    Args:
        network: f, a module that can be copied; it is left alone.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        num_samples: elements drawn for each input; None takes every element of a finite group.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces).

    Raises:
        ValueError: a network that is no module, or has no float64 (or float32) copy that runs.

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> class Longer(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.norm(dim=-1, keepdim=True) * x
        >>> floor = noise_floor(Longer(), torch.randn(20, 3), symmetry)
        >>> floor.error.value < 3 * floor.floor.value, floor.exact.value < 1e-14
        (True, True)
    """
    settings: dict[str, Any] = {"chunk_size": chunk_size, "needs_grad": needs_grad}
    with measuring(network, args, symmetry, kwargs=kwargs, generator=generator, **settings) as measurement:
        turned = orbit(measurement, measurement.elements(num_samples))
        dtype = measurement.dtype
    return noise_floor_of(network, args, symmetry, turned, dtype, kwargs=kwargs, **settings)


def noise_floor_of(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    turned: Orbit,
    dtype: torch.dtype,
    *,
    kwargs: Mapping[str, Any] | None = None,
    chunk_size: ChunkSize = "auto",
    needs_grad: bool = False,
) -> NoiseFloor:
    """The floor of an orbit that was measured, for its elements.

    Args:
        network: f.
        args: of the call.
        symmetry: says how a group element moves inputs and outputs.
        turned: the orbit.
        dtype: in which the output was computed.
        kwargs: of the call.
        chunk_size: most inputs in one call of the network.
        needs_grad: the network differentiates inside.
    """
    other = torch.float32 if dtype == torch.float64 else torch.float64
    x = in_precision((args, dict(kwargs or {})), other)

    def measure(measurement: Measurement) -> tuple[Orbit, dict[str, Tensor]]:
        return orbit(measurement, turned.elements), _there_and_back(measurement, turned)

    again, back = _in_other_precision(network, x, symmetry, other, measure, chunk_size, needs_grad)
    precise, scale = again, 1.0
    if dtype == torch.float64:
        precise, scale = turned, torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    apart = {part: scale * (w - again.changes[part]) for part, w in turned.changes.items()}
    rounding = Orbit(turned.elements, turned.f_x, apart, turned.owners, turned.num_inputs)
    squares, norms = [t.squares() for t in (rounding, precise, turned)], turned.norms()

    def of(part: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        by_rounding, in_float64, own = (square[part].mean(0) for square in squares)
        return by_rounding + back[part], in_float64, own, norms[part]

    return NoiseFloor(*of(TOTAL), {part: NoiseFloor(*of(part)) for part in turned.f_x})


def _there_and_back(measurement: Measurement, turned: Orbit) -> dict[str, Tensor]:
    """(n,) mean_g |rho(g)^-1 rho(g) f(x) - f(x)|^2 by part: elements and what moves the output are rounded, too."""
    f_x = exact(measurement.f_x)
    parts = f_x.parts()
    changes: dict[str, list[Tensor]] = {part: [] for part in parts}
    n = turned.num_inputs
    for k in range(turned.num_samples):
        g = turned.elements[k * n : (k + 1) * n]
        moved = f_x.move(g).move(g.inverse()).parts()
        for part, f in parts.items():
            changes[part].append((moved[part] - f).reshape(turned.f_x[part].shape))
    own = Orbit(turned.elements, turned.f_x, {p: torch.stack(c) for p, c in changes.items()}, turned.owners, n)
    return {part: square.mean(0) for part, square in own.squares().items()}


def _in_other_precision(
    network: Callable[..., Any],
    x: Any,
    symmetry: Symmetry,
    dtype: torch.dtype,
    measure: Callable[[Measurement], T],
    chunk_size: ChunkSize,
    needs_grad: bool,
) -> T:
    """A copy of the network in another precision, measured; constants that it makes follow the default dtype."""
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"expected an nn.Module, of which a {dtype} copy can be made, got {type(network).__name__}: its floor "
            "is the error of a network that is equivariant by construction, under the same conditions"
        )
    errors = []
    for default in (nullcontext(), _default_dtype(dtype)):
        try:
            with default, measuring(
                copy.deepcopy(network).to(dtype), x[0], symmetry, kwargs=x[1], chunk_size=chunk_size,
                needs_grad=needs_grad,
            ) as measurement:  # fmt: skip
                if measurement.dtype != dtype:
                    raise TypeError(f"its output was {measurement.dtype}")
                return measure(measurement)
        except Exception as error:  # torch's words for what does not fit, and the network's own checks
            errors.append(str(error).partition("\n")[0])
    raise ValueError(f"the network does not run in {dtype}: {errors[-1]}")


def in_precision(tree: Tree, dtype: torch.dtype) -> Tree:
    """The real tensors of a tree in another precision."""
    return map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def round_trip(measurement: Measurement, elements: GroupElement) -> Tensor:
    """(n,) squared change of inputs that are moved and moved back, relative to their squares: what resampling loses.

    Rounding for exact representations; on images turned by other than right angles, what interpolation takes away. An
    equivariant network on such inputs can read an error of about that size.

    Args:
        measurement: of a network's call.
        elements: K n of them.
    """
    n = measurement.num_inputs
    whole = exact(measurement.call.inputs)
    moving = (t for t in whole.tensors if not (t.representation.trivial or t.shared) and t.x.is_floating_point())
    inputs = replace(whole, tensors=tuple(moving))
    if not inputs.tensors:
        return torch.zeros(n, dtype=torch.float64, device=elements.device)
    there = inputs.repeat(len(elements) // n)
    back = there.move(elements).move(elements.inverse())
    again = back.parts()
    change = {part: x - again[part] for part, x in there.parts().items()}
    lost = there.squared_norms(change)[TOTAL].unflatten(0, (-1, n)).mean(0)
    return torch.where(lost == 0, 0.0, lost / inputs.squared_norms(inputs.parts())[TOTAL])
