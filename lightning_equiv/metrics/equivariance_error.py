"""EquivarianceError: how far a network is from equivariant, as a torchmetrics metric."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

from torch import Tensor
from typing_extensions import TypeVar

from lightning_equiv._checks import check_number
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.functional import Kind, check_kind, error_sums
from lightning_equiv.metrics.measurement import Measurement
from lightning_equiv.metrics.ratio_metric import RatioMetric, Sums
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry

Errors = TypeVar("Errors", default=Tensor)  # what `compute` returns: a tensor, a dict of them with `per_irrep`


class EquivarianceError(RatioMetric[Errors]):
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
        chunk_size: most inputs in one call of the network, never fewer than the batch itself; None takes all at once,
            "auto" as many as are fast and fit into memory, see `equivariance_error`.
        per_irrep: compute() returns a dict with the error of each part of the output ("0e", "1o", ...) beside "total".
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws; the k-th update of a metric draws the same elements in every run, other ones on every rank.
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: unknown kind; `compute` raises where the network returned NaN or infinity.

    Examples:
        >>> import torch
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> metric = EquivarianceError(symmetry)
        >>> metric.update(torch.nn.Identity(), torch.randn(16, 3))
        >>> bool(metric.compute() < 1e-6)
        True
        >>> metric.intervals()["total"].high < 1e-6
        True

    Reference:
        @inproceedings{elhag2025relaxed,
          title={Relaxed Equivariance via Multitask Learning},
          author={Elhag, Ahmed A. and Rusch, T. Konstantin and Di Giovanni, Francesco and Bronstein, Michael},
          booktitle={Learning on Graphs Conference}, year={2025}, note={arXiv:2410.17878}}
    """

    what = "equivariance error"
    log_name = "equivariance_error"
    for_zeros = " (kind='absolute' measures such a network)"

    @overload
    def __init__(
        self: EquivarianceError[Tensor],
        symmetry: Symmetry,
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        chunk_size: ChunkSize = "auto",
        per_irrep: Literal[False] = False,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: EquivarianceError[dict[str, Tensor]],
        symmetry: Symmetry,
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        chunk_size: ChunkSize = "auto",
        per_irrep: Literal[True],
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: EquivarianceError[Tensor | dict[str, Tensor]],
        symmetry: Symmetry,
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        chunk_size: ChunkSize = "auto",
        per_irrep: bool,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None: ...

    def __init__(
        self,
        symmetry: Symmetry,
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        chunk_size: ChunkSize = "auto",
        per_irrep: bool = False,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_kind(kind)
        check_number("num_samples", num_samples, least=1, whole=True, optional=True)
        symmetry = as_symmetry(symmetry)
        super().__init__(
            symmetry,
            [TOTAL, *symmetry.output_parts] if per_irrep else [TOTAL],
            chunk_size=chunk_size,
            needs_grad=needs_grad,
            seed=seed,
            root=kind == "relative",
            largest=kind == "max",
            settings=(num_samples, kind),
            **kwargs,
        )
        self.num_samples, self.kind, self.per_irrep = num_samples, kind, per_irrep

    def _measure(self, measurement: Measurement) -> Sums:
        return error_sums(measurement, measurement.elements(self.num_samples), self.kind)

    def compute(self) -> Errors:
        """The error over everything seen; a dict of parts with `per_irrep`. NaN, with a warning, before any update."""
        errors = self.values()
        return cast("Errors", errors if self.per_irrep else errors[TOTAL])
