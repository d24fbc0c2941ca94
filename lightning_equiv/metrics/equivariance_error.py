"""EquivarianceError: how far a network is from equivariant, as a torchmetrics metric."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import element_dtype
from lightning_equiv.metrics.functional import Kind, check_kind, error_sums, reduce_sums
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.ranks import process_rank


class EquivarianceError(Metric):
    r"""How far a network is from equivariant, over a data set.

    With K group elements g per input x and d = f(g x) - g f(x):

        relative     sqrt( sum_x mean_g |d|^2 / sum_x |f(x)|^2 )    the default: does not grow with the output
        absolute     mean_x mean_g |d|
        orbit_mean   mean_x | mean_g d |                            0 does not imply equivariance
        max          max_x max_g |d|

    0 means equivariant; two unrelated outputs of equal size are about sqrt(2) apart (relative). The network is an
    argument of `update`, never kept. Accumulates on the metric's device without waiting for it; sums over ranks under
    DDP.

    Args:
        symmetry: says how a group element moves inputs and outputs.
        num_samples: K, elements drawn for each input; None takes every element of a finite group.
        kind: which error.
        chunk_size: most inputs in one call of the network, to bound memory.
        per_irrep: compute() returns a dict with the error of each part of the output ("0e", "1o", ...) beside "total".
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws; the k-th update of a metric draws the same elements in every run, other ones on every rank.
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: unknown kind; `compute` raises where the network returned NaN or infinity.

    Examples:
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> metric = EquivarianceError(symmetry)
        >>> metric.update(torch.nn.Identity(), torch.randn(16, 3))
        >>> bool(metric.compute() < 1e-6)
        True

    Reference:
        @inproceedings{elhag2025relaxed,
          title={Relaxed Equivariance via Multitask Learning},
          author={Elhag, Ahmed A. and Rusch, T. Konstantin and Di Giovanni, Francesco and Bronstein, Michael},
          booktitle={Learning on Graphs Conference}, year={2025}, note={arXiv:2410.17878}}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(
        self,
        symmetry: Symmetry,
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        chunk_size: int | None = None,
        per_irrep: bool = False,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_kind(kind)
        for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
            check_number(name, value, least=1, whole=True, optional=True)
        self.symmetry = as_symmetry(symmetry)
        self.num_samples, self.kind, self.chunk_size = num_samples, kind, chunk_size
        self.per_irrep, self.needs_grad, self.seed = per_irrep, needs_grad, seed
        # torchmetrics merges the metrics of a collection whose states look equal: names of one's own prevent it
        description = re.sub("0x[0-9a-f]+", "", repr((self.symmetry, num_samples, kind, seed)))  # no addresses
        self._token = f"{zlib.crc32(description.encode()):08x}"
        self._parts = [TOTAL, *self.symmetry.output_parts] if per_irrep else [TOTAL]
        for part in self._parts:
            for side in ("numerator", "denominator"):
                reduction = "max" if kind == "max" else "sum"
                zero = torch.tensor(0.0, dtype=torch.float64)
                self.add_state(self._state(side, part), zero, dist_reduce_fx=reduction)
        self._updates_before = 0

    def _state(self, side: str, part: str) -> str:
        place = self._parts.index(part)
        return f"{side}_{place}_{self._token}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Measure one batch and return its error; the network is run as often as by `update`."""
        self._updates_before = self._update_count  # a forward counts its update from zero
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._updates_before = 0

    def update(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Measure one batch: `network(*args, **kwargs)` and its moved versions are run."""
        rank = process_rank()
        update = self._updates_before + self._update_count
        with measuring(
            network,
            args,
            self.symmetry,
            kwargs=kwargs,
            chunk_size=self.chunk_size,
            generator=derived_generator("EquivarianceError", self.seed, rank, update),
            needs_grad=self.needs_grad,
        ) as measurement:
            sums = error_sums(measurement, measurement.elements(self.num_samples), self.kind)
        for part in self._parts:
            for side, values in zip(("numerator", "denominator"), sums.get(part, ()), strict=False):
                name = self._state(side, part)
                old = getattr(self, name)
                values = values.to(old)
                setattr(self, name, torch.maximum(old, values.max()) if self.kind == "max" else old + values.sum())

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The error over everything seen; a dict of parts with `per_irrep`. NaN, with a warning, before any update."""
        errors = {}
        if not self._update_count and not any(bool(state) for state in self.metric_state.values()):
            errors = {part: torch.full((), torch.nan, device=self.device) for part in self._parts}
            return errors if self.per_irrep else errors[TOTAL]
        for part in self._parts:
            numerator, denominator = (getattr(self, self._state(s, part)) for s in ("numerator", "denominator"))
            errors[part] = reduce_sums(numerator, denominator, self.kind).float()
        if not bool(torch.isfinite(errors[TOTAL])):
            raise ValueError(
                f"the equivariance error is {float(errors[TOTAL])}: the network returned NaN or infinity for some "
                "input, or 0 for every one (kind='absolute' measures such a network)"
            )
        return errors if self.per_irrep else errors[TOTAL]

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the metric; on a device without float64 its states are float32."""
        dtype = element_dtype(fn(torch.zeros(0, device=self.device)).device)
        for name, state in self.metric_state.items():
            assert isinstance(state, Tensor)
            setattr(self, name, state.to(dtype))
            self._defaults[name] = torch.zeros_like(state, dtype=dtype)
        return super()._apply(fn, exclude_state)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """A plot of one or more values of the metric, of `compute` by default; see torchmetrics."""
        return self._plot(val, ax)
