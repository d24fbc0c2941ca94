"""The error against the angle of a rotation, as a function and as a torchmetrics metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.angles import turns
from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.functional import reduce_sums
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.plots import as_intervals, draw_curve, new_axes
from lightning_equiv.metrics.ratio_metric import RatioMetric, Sums
from lightning_equiv.symmetry.call import TOTAL, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry

ANGLES = tuple(range(0, 181, 15))  # degrees


def angle_profile(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    angles: Sequence[float] | None = None,
    num_samples: int = 1,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> dict[str, Tensor]:
    r"""The relative error of each input for rotations by given angles.

        error(a) = sqrt( mean_k |f(g_k x) - g_k f(x)|^2 / |f(x)|^2 ),    g_k = R(axis_k, a), axes drawn uniformly

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs; of a group with rotations.
        kwargs: keyword arguments of the call.
        angles: in degrees; None takes 0, 15, .. 180, of C_n and D_n those that they have.
        num_samples: K, axes drawn for each input and angle.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces).

    Returns:
        (n,) errors by angle: "0", "15", ..

    Raises:
        ValueError: a group without rotations, or without one by such an angle; one angle twice.

    Examples:
        >>> from lightning_equiv import Point
        >>> x, c = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0])
        >>> found = angle_profile(lambda x: x + c, x, Symmetry("SO(2)", Point(), Point()), angles=[60, 180])
        >>> {angle: round(float(error), 3) for angle, error in found.items()}  # 2 sin(a / 2) |c| / |x + c|
        {'60': 0.177, '180': 0.354}
    """
    check_number("num_samples", num_samples, least=1, whole=True)
    degrees = angles_of(as_group(as_symmetry(symmetry).group), angles)
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        sums = profile_sums(measurement, degrees, num_samples)
    return {name: reduce_sums(*pair, "relative").to(measurement.dtype) for name, pair in sums.items()}


def profile_sums(measurement: Measurement, degrees: Sequence[float], num_samples: int) -> Sums:
    """mean_k |f(g_k x) - g_k f(x)|^2 and |f(x)|^2 (n,) of each input, by angle."""
    n = measurement.num_inputs
    # element k n + i moves input i; the draws of one angle follow each other
    steps = torch.tensor(degrees, dtype=torch.float64).deg2rad().repeat_interleave(num_samples * n)
    g = turns(measurement.group, steps, len(steps), generator=measurement.generator, device=measurement.device)

    def squares(_: GroupElement, f_gx: BoundTree, g_fx: BoundTree) -> Tensor:
        left, right = f_gx.parts(), g_fx.parts()
        return f_gx.squared_norms({part: left[part] - right[part] for part in left})[TOTAL].unflatten(0, (-1, n))

    means = torch.cat(measurement.for_each_chunk(g, squares)).unflatten(0, (len(degrees), num_samples)).mean(1)
    norm = measurement.f_x.squared_norms(measurement.parts)[TOTAL]
    return {name: (mean, norm) for name, mean in zip(angle_names(degrees), means, strict=True)}


def angle_names(degrees: Sequence[float]) -> list[str]:
    """What figures are called: "15", "22.5"."""
    return [f"{a:g}" for a in degrees]


def angles_of(group: Group, angles: Sequence[float] | None) -> tuple[float, ...]:
    """The angles in degrees that are asked for, or those of `ANGLES` that a group has.

    Raises:
        ValueError: a group without rotations, or without one by such an angle; one angle twice; no angle.
    """
    if not group.rotates:
        raise ValueError(f"expected a group with rotations for a profile over their angle, got {group}")
    probe = derived_generator("angles")
    if angles is None:
        return tuple(a for a in ANGLES if _has(group, a, probe))
    if not len(angles) or len(set(angle_names(angles))) < len(angles):
        raise ValueError(f"expected at least one angle in degrees, and none twice, got {list(angles)}")
    for a in angles:
        turns(group, math.radians(a), 1, generator=probe)
    return tuple(angles)


def _has(group: Group, angle: float, probe: torch.Generator) -> bool:
    try:
        turns(group, math.radians(angle), 1, generator=probe)
    except ValueError:
        return False
    return True


class AngleProfile(RatioMetric):
    r"""How far a network is from equivariant under rotations by a given angle, over a data set.

        error(a) = sqrt( sum_x mean_k |f(g_k x) - g_k f(x)|^2 / sum_x |f(x)|^2 ),    g_k = R(axis_k, a)

    with axes drawn uniformly for each input, turns to either side in the plane. `compute` gives a dict by the angle in
    degrees: "0", "15", .. "180". 0 means equivariant; a curve that is steep at 0 and flat from there on means that
    small turns cost as much as large ones. `plot` draws it with the 95 % confidence intervals over inputs.

    Args:
        symmetry: says how a group element moves inputs and outputs; of a group with rotations. Of SE(3) and E(3), those
            about the origin.
        angles: in degrees; None takes 0, 15, .. 180, of C_n and D_n those that they have.
        num_samples: K, axes drawn for each input and angle.
        chunk_size: most inputs in one call of the network, to bound memory.
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws; the k-th update of a metric draws the same elements in every run, other ones on every rank.
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: a group without rotations, or without one by such an angle; one angle twice; `compute` raises where
            the network returned NaN or infinity.

    Examples:
        >>> from lightning_equiv import Point
        >>> metric = AngleProfile(Symmetry("SO(2)", Point(), Point()), angles=(0, 90, 180))
        >>> metric.update(lambda x: x * torch.tensor([1.0, -1.0]), torch.randn(16, 2))  # a reflection
        >>> {angle: round(float(error), 3) for angle, error in metric.compute().items()}
        {'0': 0.0, '90': 2.0, '180': 0.0}
    """

    what = "equivariance error"
    log_name = "angle_profile"
    draws_itself = True

    def __init__(
        self,
        symmetry: Symmetry,
        *,
        angles: Sequence[float] | None = None,
        num_samples: int = 1,
        chunk_size: ChunkSize = "auto",
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_number("num_samples", num_samples, least=1, whole=True)
        symmetry = as_symmetry(symmetry)
        self.angles = angles_of(as_group(symmetry.group), angles)
        super().__init__(
            symmetry,
            angle_names(self.angles),
            chunk_size=chunk_size,
            needs_grad=needs_grad,
            seed=seed,
            root=True,
            settings=(self.angles, num_samples),
            **kwargs,
        )
        self.num_samples = num_samples

    def _measure(self, measurement: Measurement) -> Sums:
        return profile_sums(measurement, self.angles, self.num_samples)

    def _bounds(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        found = super()._bounds()
        bad = [name for name, bounds in found.items() if not bool(torch.isfinite(bounds[0]))]
        if self._update_count and bad:
            raise ValueError(
                f"the {self.what} at {bad[0]} degrees is {float(found[bad[0]][0])}: the network returned NaN or "
                "infinity for some turned input, or 0 for every one that was not"
            )
        return found

    def _draw(self, val: Mapping[str, Any] | None, ax: Any) -> Any:
        """A curve, the error against the angle, with intervals."""
        found = as_intervals(self.intervals() if val is None else val)
        figure, axes = new_axes(ax)
        xs = [float(name) for name in found]
        draw_curve(axes, xs, list(found.values()), "angle / degrees", "relative error")
        if xs == [float(a) for a in ANGLES]:
            axes.set_xticks(range(0, 181, 45))
        return figure, axes
