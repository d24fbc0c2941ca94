"""Task error and equivariance error of a trained network against the softness of its layers."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_equiv._random import derived_generator
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.functional import error_sums, reduce_sums
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.metrics.plots import check_drawing
from lightning_equiv.symmetrize.soften import LayerFilter, left_over_words, soften_layers
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TaskError = Callable[[nn.Module], Any]

_SOFTNESSES = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_EQUIVARIANT = 1e-3  # relative equivariance error that is taken for rounding
_EXPRESSED = 1e-6  # share of a layer that is left over, taken for rounding


@dataclass(frozen=True)
class SoftnessCurve:
    """Errors of a network against the softness of its layers.

    Attributes:
        softnesses: s, from 0 (strict) to 1 (as trained).
        task_errors: by name, one for each softness.
        equivariance_errors: relative, of the whole network: sqrt(mean |f(g x) - g f(x)|^2 / mean |f(x)|^2).
        layer_errors: by layer, its own relative equivariance error for inputs of independent entries.
        left_over: by layer, the largest share of its matrix that its weights could not change as they had to; only of
            layers that have one.
        group: as it is written.
    """

    softnesses: tuple[float, ...]
    task_errors: Mapping[str, tuple[float, ...]]
    equivariance_errors: tuple[float, ...]
    layer_errors: Mapping[str, tuple[float, ...]]
    left_over: Mapping[str, float]
    group: str

    @property
    def rows(self) -> list[dict[str, float]]:
        """One for each softness: the softness, the task errors, the equivariance error."""
        columns = {"softness": self.softnesses, **self.task_errors, "equivariance error": self.equivariance_errors}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def text(self) -> str:
        """What the numbers say, in sentences."""
        strict, free = self.rows[0], self.rows[-1]
        name = next(iter(self.task_errors))
        found = [
            f"From softness {free['softness']:g} to {strict['softness']:g} the {name} goes from {free[name]:.3g} to "
            f"{strict[name]:.3g} and the equivariance error from {free['equivariance error']:.3g} to "
            f"{strict['equivariance error']:.3g}."
        ]
        if strict["softness"] == 0 and strict["equivariance error"] > _EQUIVARIANT and not self.left_over:
            found.append(
                f"At softness 0 all chosen layers commute with {self.group}, and the network does not: something "
                "between them breaks the symmetry, such as a nonlinearity that acts on the components of vectors one "
                "by one, a normalisation or positions that differ from channel to channel, pooling that does not fit "
                "the grid, or a layer that was not chosen. No softness will mend that."
            )
        if self.left_over:
            found.append(left_over_words(dict(self.left_over)) + ".")
        return " ".join(found)

    def markdown(self) -> str:
        """The table, with its text below."""
        header = list(self.rows[0])
        lines = [header, ["---"] * len(header), *([f"{x:.3g}" for x in row.values()] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{self.text}\n"

    def plot(self) -> Figure:
        """Task errors above, the equivariance error below, against the softness.

        Raises:
            ImportError: there is no matplotlib.
        """
        check_drawing()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.8, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for name, errors in self.task_errors.items():
            above.plot(self.softnesses, errors, "o-", markersize=4, label=name)
        below.plot(self.softnesses, self.equivariance_errors, "o-", markersize=4, color="black", label="network")
        for name, errors in self.layer_errors.items() if len(self.layer_errors) <= 8 else ():
            below.plot(self.softnesses, errors, linewidth=1, alpha=0.7, label=f"layer {name}")
        above.set(ylabel="task error")
        below.set(xlabel="softness: 0 is strict, 1 as trained", ylabel="equivariance error", ylim=(0, None))
        for axes in (above, below):
            axes.grid(alpha=0.2)
            axes.legend(fontsize="small")
        return figure

    def save(self, path: str | Path) -> Path:
        """Write the table (.csv, .md) or the picture (.png, .svg, .pdf).

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".md", ".png", ".svg", ".pdf"):
            raise ValueError(f"expected a path that ends in .csv, .md, .png, .svg or .pdf, got {str(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            path.write_text(self.markdown(), encoding="utf-8")
        elif path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        else:
            self.plot().savefig(path, dpi=150)
        return path


def softness_curve(
    network: nn.Module,
    symmetry: Symmetry,
    layers: Layers,
    inputs: Any,
    task_error: TaskError | Mapping[str, TaskError],
    softnesses: Sequence[float] = _SOFTNESSES,
    *,
    kwargs: Mapping[str, Any] | None = None,
    families: Sequence[LayerFamily] = (),
    num_samples: int | None = 8,
    seed: int = 0,
    needs_grad: bool = False,
) -> SoftnessCurve:
    """Task error and equivariance error of a trained network whose layers are softened, `soften`, more and more.

    Choose the softness on data that the final error is not reported on.

    Args:
        network: trained; it stays as it is.
        symmetry: how a group element moves its inputs and outputs.
        layers: which are softened, and how their features move, as `soften` takes them.
        inputs: a tuple of the positional arguments of a call on which the equivariance error is measured, or the only
            argument.
        task_error: of a network, lower is better: a function of the softened network in evaluation mode, or several by
            name.
        softnesses: from 0 (strict) to 1 (as trained), in any order.
        kwargs: keyword arguments of the call.
        families: of layers that the library does not know.
        num_samples: group elements drawn per input, the same ones for each softness; None takes every element of a
            finite group.
        seed: of the draws.
        needs_grad: the network differentiates inside (conservative forces): run it with gradients enabled.

    Raises:
        ValueError: no softnesses, one that is not in 0 .. 1; the network returns NaN or infinity; what `soften` and
            `equivariance_error` raise.
        TypeError: `task_error` is not a function, nor a dict of functions.

    Examples:
        >>> network, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(64, 3)
        >>> curve = softness_curve(
        ...     network, Symmetry("SO(3)", "1o", "1o"), {"0": ("1o", "1o")}, x, lambda f: (f(x) - 2 * x).square().mean()
        ... )
        >>> curve.rows[0]["softness"], curve.rows[0]["equivariance error"] < 1e-5
        (0.0, True)
    """
    symmetry = as_symmetry(symmetry)
    named = dict(task_error) if isinstance(task_error, Mapping) else {"task error": task_error}
    if not named or not all(map(callable, named.values())):
        raise TypeError(f"expected task_error as a function of the network, or a dict of these, got {task_error!r}")
    levels = sorted({*softnesses})
    if not levels:
        raise ValueError("expected softnesses from 0 to 1, such as (0.0, 0.5, 1.0), got none")
    filters: dict[str, LayerFilter] = {}
    task_errors: dict[str, list[float]] = {name: [] for name in named}
    layer_errors: dict[str, list[float]] = {}
    equivariance_errors, left_over = [], dict[str, float]()
    for s in levels:
        softened, states = soften_layers(network, symmetry, layers, s, families, filters)
        softened.eval()
        with torch.set_grad_enabled(needs_grad):
            for name, error in named.items():
                task_errors[name].append(float(error(softened)))
        for name, state in states.items():
            layer_errors.setdefault(name, []).append(state.error)
            if state.left_over > _EXPRESSED:
                left_over[name] = max(state.left_over, left_over.get(name, 0.0))
        generator = derived_generator("softness_curve", seed)
        with measuring(
            softened, inputs, symmetry, kwargs=kwargs, generator=generator, needs_grad=needs_grad
        ) as measurement:
            sums = error_sums(measurement, measurement.elements(num_samples, None), "relative")[TOTAL]
        equivariance_errors.append(float(reduce_sums(sums[0].sum(), sums[1].sum(), "relative")))
        if not math.isfinite(equivariance_errors[-1]):
            raise ValueError(f"at softness {s:g} the network returned NaN or infinity for some of the inputs")
    return SoftnessCurve(
        softnesses=tuple(levels),
        task_errors={name: tuple(values) for name, values in task_errors.items()},
        equivariance_errors=tuple(equivariance_errors),
        layer_errors={name: tuple(values) for name, values in layer_errors.items()},
        left_over=left_over,
        group=str(symmetry.group),
    )
