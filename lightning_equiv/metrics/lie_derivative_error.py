"""LieDerivativeError: how fast a network loses its equivariance, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_equiv.metrics.chunks import ChunkSize, check_chunk_size
from lightning_equiv.metrics.derivative import Method, check_method
from lightning_equiv.metrics.lie_derivative import LieDerivative, check_algebra, lie_grams
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.metrics.symmetry_metric import SymmetryMetric
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry


class LieDerivativeError(SymmetryMetric):
    r"""How fast a network loses its equivariance where a small group element moves the input, over a data set.

        (L_A f)(x) = d/dt rho_out(e^{-tA}) f(rho_in(e^{tA}) x) at t = 0  =  J_f(x) A_in x - A_out f(x)
        M_ij = sum_x <L_i f, L_j f> / sum_x |f(x)|^2        total = sqrt( tr M )        of generator i: sqrt( M_ii )

    with A_i the generators of the group: rotations by a radian about x, y and z, translations by a unit of length along
    them. `compute` gives a dict: "total", and each generator's figure by its name: "x", "y", "z" for rotations, "tx",
    "ty", "tz" for translations, "rotation" for that of a plane, with the factor in front in a product ("SO(3).x").
    0 means equivariant under all elements that are connected to the identity; there is no upper bound. The network is
    an argument of `update`, never kept. No random numbers are drawn. What images read without any fault of the network,
    and more of the formula: `lie_derivative_error`.

    Args:
        symmetry: says how a group element moves inputs and outputs; by representations that know their derivatives.
        method: how the network is differentiated: "jvp", "double_backward", "central_difference", or "auto", the first
            of them that runs and is found right; see `methods`.
        chunk_size: most inputs in one call of the network, to bound memory.
        per_irrep: compute() also has the figures of each part of the output, "1o/total" and "1o/x".
        needs_grad: the network differentiates inside (conservative forces).
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: a finite group, an unknown method; `compute` raises where the network returned NaN or infinity.

    Examples:
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> metric = LieDerivativeError(symmetry)
        >>> metric.update(lambda x: x * torch.tensor([1.0, 1.0, 2.0]), torch.randn(16, 3))
        >>> sorted(metric.compute())
        ['total', 'x', 'y', 'z']
        >>> metric.summary().kept(floor=1e-3), metric.methods
        ('rotations about z', {'jvp': 16})

    Reference:
        @inproceedings{gruver2023lie,
          title={The Lie Derivative for Measuring Learned Equivariance},
          author={Gruver, Nate and Finzi, Marc and Goldblum, Micah and Wilson, Andrew Gordon},
          booktitle={International Conference on Learning Representations}, year={2023}, note={arXiv:2210.02984}}
    """

    log_name = "lie_derivative"

    def __init__(
        self,
        symmetry: Symmetry,
        *,
        method: Method | Literal["auto"] = "auto",
        chunk_size: ChunkSize = "auto",
        per_irrep: bool = False,
        needs_grad: bool = False,
        **kwargs: Any,
    ) -> None:
        check_method(method)
        check_chunk_size(chunk_size)
        super().__init__(symmetry, needs_grad=needs_grad, settings=method, **kwargs)
        self.method, self.chunk_size, self.per_irrep = method, chunk_size, per_irrep
        self._group = check_algebra(self.symmetry)
        self._parts = [TOTAL, *self.symmetry.output_parts] if per_irrep else [TOTAL]
        self._declare("methods", len(get_args(Method)))
        for part in self._parts:
            self._declare(self._of("gram", part), self._group.dim, self._group.dim)
            self._declare(self._of("norm", part))

    def _of(self, kind: str, part: str) -> str:
        return f"{kind}_{self._parts.index(part)}"

    def update(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Measure one batch: `network(*args, **kwargs)` is run and differentiated."""
        with measuring(
            network, args, self.symmetry, kwargs=kwargs, chunk_size=self.chunk_size, needs_grad=self.needs_grad
        ) as measurement:
            grams, method = lie_grams(measurement, self.method)
            norms = measurement.f_x.squared_norms(measurement.parts)
            inputs = measurement.num_inputs
        for part in self._parts:
            if part in grams:
                self._add(self._of("gram", part), grams[part].sum(0))
                self._add(self._of("norm", part), norms[part].sum())
        counts = self._state("methods").clone()  # the number goes to the device with the addition, not as a copy
        counts[get_args(Method).index(method)] += inputs
        self._set("methods", counts)

    def compute(self) -> dict[str, Tensor]:
        """The figures over everything seen, by name; NaN, with a warning, before any update."""
        summary = self._summary()
        figures = {name: value.float() for name, value in summary.figures().items()}
        if not self._update_count and not bool(summary.norms.any()):
            return {name: torch.full_like(value, torch.nan) for name, value in figures.items()}
        if not bool(torch.isfinite(figures[TOTAL])):
            raise ValueError(
                f"the Lie derivative is {float(figures[TOTAL])} of the output: the network returned NaN or infinity "
                "for some input, or 0 for every one"
            )
        return figures

    def summary(self) -> LieDerivative:
        """What all ranks have seen, which call this together, as one input: `gram`, `spectrum()`, `kept(floor)`."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._summary()

    @property
    def methods(self) -> dict[str, int]:
        """How many inputs were measured by which method, on this rank."""
        counts = self._state("methods").tolist()
        return {name: int(count) for name, count in zip(get_args(Method), counts, strict=True) if count}

    def _summary(self) -> LieDerivative:
        """The states."""

        def sums(part: str) -> tuple[Tensor, Tensor]:
            gram, norm = (self._state(self._of(kind, part)) for kind in ("gram", "norm"))
            return gram[None], norm[None]

        counts = self._state("methods")
        used = " and ".join(name for name, count in zip(get_args(Method), counts, strict=True) if bool(count))
        parts = {part: sums(part) for part in self._parts if part != TOTAL}
        return LieDerivative(self._group, *sums(TOTAL), used, parts)
