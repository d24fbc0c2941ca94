"""The task's own metric: of predictions as they are, in a random orientation, and averaged over the orbit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.audit.measured import Drawn
from lightning_equiv.groups.group import GroupElement
from lightning_equiv.symmetry.call import BoundTree

_ORIENTATIONS = 8  # of which each is a whole data set to the metric


class TaskMetric:
    """Collects predictions and labels for a metric that wants all of them at once.

    Args:
        metric: (predictions, labels) -> number; None collects nothing.
    """

    def __init__(self, metric: Callable[[Tensor, Tensor], Any] | None) -> None:
        self.metric = metric
        self.predictions: list[Tensor] = []  # as they are
        self.averaged: list[Tensor] = []
        self.oriented: list[list[Tensor]] = []
        self.labels: list[Tensor] = []

    def update(self, drawn: Drawn) -> None:
        """Keep what the metric takes of one call.

        Raises:
            ValueError: an output, or labels, that are not one tensor.
        """
        if self.metric is None:
            return
        m, n = drawn.measurement, drawn.turned.num_inputs
        if len(m.f_x.tensors) != 1 or not isinstance(drawn.labels, Tensor):
            raise ValueError("a task metric takes networks with one tensor as output, and one tensor of labels")

        def back(g: GroupElement, f_gx: BoundTree, _: BoundTree) -> Tensor:
            z = f_gx.move(g.inverse()).tensors[0].x
            return z.reshape(len(g) // n, -1, *z.shape[1:])

        z = torch.cat(m.for_each_chunk(drawn.turned.elements, back)).cpu()
        self.predictions.append(m.f_x.tensors[0].x.cpu())
        self.averaged.append(z.mean(0))
        self.oriented.append(list(z[:_ORIENTATIONS]))
        self.labels.append(drawn.labels.cpu())

    def figures(self) -> dict[str, Any]:
        """The metric's values, {} where nothing was collected."""
        if self.metric is None or not self.labels:
            return {}
        y = torch.cat(self.labels)
        each = [torch.cat(z) for z in zip(*self.oriented, strict=False)]
        return {
            "name": getattr(self.metric, "__name__", type(self.metric).__name__),
            "as_is": self._value(torch.cat(self.predictions), y),
            "averaged": self._value(torch.cat(self.averaged), y),
            "oriented": sum(self._value(z, y) for z in each) / len(each),
        }

    def _value(self, predictions: Tensor, labels: Tensor) -> float:
        assert self.metric is not None
        return float(self.metric(predictions, labels))
