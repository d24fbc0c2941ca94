"""What the metrics of this library share: figures that are ratios of sums over the inputs of a data set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, cast

import torch
from torch import Tensor
from typing_extensions import TypeVar  # with defaults; torch brings it

from lightning_equiv.metrics.chunks import ChunkSize, check_chunk_size
from lightning_equiv.metrics.interval import Interval, moments, ratio_interval
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.symmetry_metric import SymmetryMetric
from lightning_equiv.symmetry.symmetry import Symmetry

Sums = Mapping[str, tuple[Tensor, Tensor]]
Computed = TypeVar("Computed", default=dict[str, Tensor])  # what `compute` returns


class RatioMetric(SymmetryMetric, Generic[Computed]):
    r"""Figures r = sum_x A(x) / sum_x B(x) over a data set, or their roots, each with a confidence interval.

    A subclass says which figures it has (`figures`) and what each input adds to their sums (`_measure`). The network is
    an argument of `update`, never kept. Accumulates on the metric's device without waiting for it; sums over ranks
    under DDP.

    Attributes:
        figures: their names, the most important one first.
        root: they are roots of ratios.
        what: the metric in words, for messages.
        for_zeros: which setting measures a network that returns 0, in words.
        log_name: what a monitor calls it in the log.
    """

    what: ClassVar[str]
    for_zeros: ClassVar[str] = ""
    log_name: ClassVar[str]

    def __init__(
        self,
        symmetry: Symmetry,
        figures: Sequence[str],
        *,
        chunk_size: ChunkSize,
        needs_grad: bool,
        root: bool,
        seed: int = 0,
        largest: bool = False,
        settings: object = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(symmetry, needs_grad=needs_grad, seed=seed, settings=settings, **kwargs)
        check_chunk_size(chunk_size)
        self.chunk_size, self.figures, self.root, self._largest = chunk_size, tuple(figures), root, largest
        self._declare("sums", len(self.figures), 6, reduce="max" if largest else "sum")

    @abstractmethod
    def _measure(self, measurement: Measurement) -> Sums:
        """A and B (n,) of each figure, by name; a figure that is not there has nothing to add."""

    def update(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Measure one batch: `network(*args, **kwargs)` and its moved versions are run."""
        with measuring(
            network,
            args,
            self.symmetry,
            kwargs=kwargs,
            chunk_size=self.chunk_size,
            generator=self._generator(),
            needs_grad=self.needs_grad,
        ) as measurement:
            sums = self._measure(measurement)
        old = self._state("sums")
        rows = [self._row(old, *sums[name]) if name in sums else torch.zeros_like(old[0]) for name in self.figures]
        new = torch.stack(rows)
        self._set("sums", torch.maximum(old, new) if self._largest else old + new)

    def _row(self, like: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        """What a batch adds to the sums of a figure; of a largest value, that and 1."""
        numerator, denominator = numerator.to(like), denominator.to(like)
        if not self._largest:
            return moments(numerator, denominator)
        one, nothing = like.new_ones(()), like.new_zeros(())
        return torch.stack([one, numerator.amax(), one, nothing, nothing, nothing])

    def compute(self) -> Computed:
        """Every figure over everything seen, by name. NaN, with a warning, before any update."""
        return cast("Computed", self.values())

    def values(self) -> dict[str, Tensor]:
        """Every figure over everything seen, by name.

        Raises:
            ValueError: the network returned NaN or infinity, or nothing but 0.
        """
        return {name: bounds[0] for name, bounds in self._bounds().items()}

    def intervals(self) -> dict[str, Interval]:
        """Every figure with its 95 % confidence interval; the inputs are its units, the draws for one are nested."""
        return {name: Interval(*map(float, bounds)) for name, bounds in self._bounds().items()}

    def _bounds(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        sums = self._state("sums")
        if not self._update_count and not bool(sums.any()):
            nan = torch.full((), torch.nan, device=self.device)
            return dict.fromkeys(self.figures, (nan, nan, nan))
        found = {}
        for name, row in zip(self.figures, sums, strict=True):
            value, low, high = (bound.float() for bound in ratio_interval(row, self.root))
            found[name] = (value, low * torch.nan, high * torch.nan) if self._largest else (value, low, high)
        first = found[self.figures[0]][0]
        if not bool(torch.isfinite(first)):
            raise ValueError(
                f"the {self.what} is {float(first)}: the network returned NaN or infinity for some input, or 0 for "
                f"every one{self.for_zeros}"
            )
        return found
