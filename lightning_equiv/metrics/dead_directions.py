"""The share of a network's hidden units that its nonlinearities treat as linear: those with one sign everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


class DeadShares:
    r"""Counts (unit, sample) pairs whose input to a nonlinearity has one sign over all points of the sample.

        negative = share of pairs with x <= 0 at every point      shut: a ReLU lets nothing, or no gradient, through
        positive = share of pairs with x > 0 at every point       open: the unit is linear

    Either way the direction decides nothing there. For vector neurons x is <q, d>, and the gradient of what d decides
    is 0, or that of a projection which is the same for all points.

    Examples:
        >>> shares = DeadShares()
        >>> x = torch.tensor([[[1.0, 2.0], [-1.0, 0.0], [1.0, -1.0], [0.5, 3.0]]])  # one sample, four units, two points
        >>> shares.update("act", x)
        >>> {name: float(share) for name, share in shares.compute().items()}
        {'negative': 0.25, 'positive': 0.5, 'negative/act': 0.25, 'positive/act': 0.5}
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[Tensor, int]] = {}  # (negative, positive), and of how many

    def update(self, name: str, x: Tensor) -> None:
        """Count a call of the nonlinearity of that name.

        Args:
            name: of the nonlinearity.
            x: (samples, units, points).
        """
        if not x.numel():
            return
        low, high = x.aminmax(dim=-1)
        counts, pairs = torch.stack([(high <= 0).sum(), (low > 0).sum()]), low.numel()
        if name in self._counts:
            before, number = self._counts[name]
            counts, pairs = counts + before, pairs + number
        self._counts[name] = counts, pairs

    def compute(self) -> dict[str, Tensor]:
        """The shares of all pairs, then those of every nonlinearity; none where nothing was counted."""
        if not self._counts:
            return {}
        totals = torch.stack([counts for counts, _ in self._counts.values()]).sum(0)
        shares = totals / sum(pairs for _, pairs in self._counts.values())
        values = dict(zip(("negative", "positive"), shares.unbind(), strict=True))
        for name, (counts, pairs) in self._counts.items():
            for side, count in zip(("negative", "positive"), counts.unbind(), strict=True):
                values[f"{side}/{name}"] = count / pairs
        return values
