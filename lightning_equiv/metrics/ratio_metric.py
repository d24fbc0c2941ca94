"""What the metrics of this library share: figures that are ratios of sums over the inputs of a data set."""

from __future__ import annotations

import re
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import element_dtype
from lightning_equiv.metrics.chunks import ChunkSize, check_chunk_size
from lightning_equiv.metrics.interval import Interval, moments, ratio_interval
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.ranks import process_rank

Sums = Mapping[str, tuple[Tensor, Tensor]]


class RatioMetric(Metric):
    r"""Figures r = sum_x A(x) / sum_x B(x) over a data set, or their roots, each with a confidence interval.

    A subclass says which figures it has (`figures`) and what each input adds to their sums (`_measure`). The network is
    an argument of `update`, never kept. Accumulates on the metric's device without waiting for it; sums over ranks
    under DDP.

    Attributes:
        figures: their names, the most important one first.
        root: they are roots of ratios.
        what: the metric in words, for messages.
        for_zeros: which setting measures a network that returns 0, in words.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    what: ClassVar[str]
    for_zeros: ClassVar[str] = ""

    def __init__(
        self,
        symmetry: Symmetry,
        figures: Sequence[str],
        *,
        chunk_size: ChunkSize,
        needs_grad: bool,
        seed: int = 0,
        root: bool,
        largest: bool = False,
        settings: object = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_chunk_size(chunk_size)
        self.symmetry = as_symmetry(symmetry)
        self.chunk_size, self.needs_grad, self.seed = chunk_size, needs_grad, seed
        self.figures, self.root, self._largest = tuple(figures), root, largest
        # torchmetrics merges the metrics of a collection whose states look equal: names of one's own prevent it
        description = re.sub("0x[0-9a-f]+", "", repr((type(self).__name__, self.symmetry, settings, seed)))
        self._state = f"sums_{zlib.crc32(description.encode()):08x}"
        zero = torch.zeros(len(self.figures), 6, dtype=torch.float64)
        self.add_state(self._state, zero, dist_reduce_fx="max" if largest else "sum")
        self._updates_before = 0

    @abstractmethod
    def _measure(self, measurement: Measurement) -> Sums:
        """A and B (n,) of each figure, by name; a figure that is not there has nothing to add."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Measure one batch and return its value; the network is run as often as by `update`."""
        self._updates_before = self._update_count  # a forward counts its update from zero
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._updates_before = 0

    def update(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Measure one batch: `network(*args, **kwargs)` and its moved versions are run."""
        update = self._updates_before + self._update_count
        with measuring(
            network,
            args,
            self.symmetry,
            kwargs=kwargs,
            chunk_size=self.chunk_size,
            generator=derived_generator(type(self).__name__, self.seed, process_rank(), update),
            needs_grad=self.needs_grad,
        ) as measurement:
            sums = self._measure(measurement)
        old = getattr(self, self._state)
        rows = [self._row(old, *sums[name]) if name in sums else torch.zeros_like(old[0]) for name in self.figures]
        new = torch.stack(rows)
        setattr(self, self._state, torch.maximum(old, new) if self._largest else old + new)

    def _row(self, like: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        """What a batch adds to the sums of a figure; of a largest value, that and 1."""
        numerator, denominator = numerator.to(like), denominator.to(like)
        if not self._largest:
            return moments(numerator, denominator)
        one, nothing = like.new_ones(()), like.new_zeros(())
        return torch.stack([one, numerator.amax(), one, nothing, nothing, nothing])

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Every figure over everything seen, by name. NaN, with a warning, before any update."""
        return self.values()

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
        sums = getattr(self, self._state)
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

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the metric; on a device without float64 its states are float32."""
        dtype = element_dtype(fn(torch.zeros(0, device=self.device)).device)
        for name, state in self.metric_state.items():
            assert isinstance(state, Tensor)
            setattr(self, name, state.to(dtype))
            self._defaults[name] = torch.zeros_like(state, dtype=dtype)
        return super()._apply(fn, exclude_state)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A plot of one or more values of the metric, of `compute` by default; see torchmetrics."""
        return self._plot(val, ax)
