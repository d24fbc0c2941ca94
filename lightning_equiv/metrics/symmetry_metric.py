"""What all metrics of this library share: states in float64 with names of their own, draws from a seed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import element_dtype
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.ranks import process_rank


class SymmetryMetric(Metric):
    """A metric whose `update(network, *args, **kwargs)` measures a network, which is never kept.

    Accumulates on the metric's device without waiting for it. States are summed over ranks under DDP; the k-th update
    of a metric draws the same elements in every run, other ones on every rank.

    Args:
        symmetry: says how a group element moves inputs and outputs.
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws.
        settings: what else tells two metrics apart.
        kwargs: of torchmetrics.Metric.

    Attributes:
        draws_itself: `plot` has a picture of its own.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    draws_itself: ClassVar[bool] = False

    def __init__(
        self, symmetry: Symmetry, *, needs_grad: bool, seed: int = 0, settings: object = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.symmetry, self.needs_grad, self.seed = as_symmetry(symmetry), needs_grad, seed
        # torchmetrics merges the metrics of a collection whose states look equal: names of one's own prevent it
        description = repr((type(self).__name__, self.symmetry, settings, seed))
        self._token = f"{zlib.crc32(re.sub('0x[0-9a-f]+', '', description).encode()):08x}"  # no addresses
        self._updates_before = 0

    def _declare(self, name: str, *shape: int, reduce: Literal["sum", "max"] = "sum") -> None:
        """A state of zeros."""
        self.add_state(f"{name}_{self._token}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx=reduce)

    def _state(self, name: str) -> Tensor:
        state: Tensor = getattr(self, f"{name}_{self._token}")
        return state

    def _set(self, name: str, value: Tensor) -> None:
        setattr(self, f"{name}_{self._token}", value)

    def _add(self, name: str, value: Tensor) -> None:
        old = self._state(name)
        self._set(name, old + value.to(old))

    def _generator(self) -> torch.Generator:
        """Of the draws of this update."""
        update = self._updates_before + self._update_count
        return derived_generator(type(self).__name__, self.seed, process_rank(), update)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Measure one batch and return its value; the network is run as often as by `update`."""
        self._updates_before = self._update_count  # a forward counts its update from zero
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._updates_before = 0

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the metric; on a device without float64 its states are float32."""
        dtype = element_dtype(fn(torch.zeros(0, device=self.device)).device)
        for name, state in self.metric_state.items():
            default = self._defaults[name]
            assert isinstance(state, Tensor)
            assert isinstance(default, Tensor)
            setattr(self, name, state.to(dtype))
            self._defaults[name] = default.to(dtype)
        return super()._apply(fn, exclude_state)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """The figure and axes of a picture: the metric's own where it draws itself, else torchmetrics'.

        Args:
            val: what `compute` returned (or `intervals`, where it has them); by default that of all that this process
                has seen. A list of several values is drawn by torchmetrics, step by step.
            ax: axes to draw on; by default those of a new figure, which pyplot does not know.

        Raises:
            ImportError: there is no matplotlib.
        """
        if self.draws_itself and (val is None or isinstance(val, Mapping)):
            return self._draw(val, ax)
        return self._plot(val, ax)

    def _draw(self, val: Mapping[str, Any] | None, ax: Any) -> Any:
        """What `plot` returns, of one value or of what was seen: what a metric with `draws_itself` writes."""
        raise NotImplementedError
