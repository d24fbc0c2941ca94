"""How much of a layer's output its branch is, in the last batches, and what is said of it when training is over."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.strategies.keeping_callback import Report
from lightning_equiv.wiring.ranks import is_distributed

WINDOW = 100  # training batches


class Shares:
    """|n(x)| / |f(x)| of every layer, the root of a sum over a batch's rows and features on both sides.

    Args:
        num_layers: how many layers there are.

    Attributes:
        batches: (layers,) the shares in each of the last batches, the newest last.
    """

    def __init__(self, num_layers: int) -> None:
        self.batches: deque[Tensor] = deque(maxlen=WINDOW)
        self._squares: list[list[Tensor]] = [[] for _ in range(num_layers)]  # of the calls of this batch
        self._largest: Tensor | None = None  # of all processes

    def observe(self, i: int) -> Callable[[Tensor, Tensor], None]:
        """(n(x), f(x)) -> None: what takes up a call of layer i."""

        def observe(n_x: Tensor, f_x: Tensor) -> None:
            self._squares[i].append(torch.stack([n_x.float().square().sum(), f_x.float().square().sum()]))

        return observe

    def begin(self) -> None:
        """A batch begins."""
        for squares in self._squares:
            squares.clear()

    def end(self, like: Tensor) -> None:
        """The batch is over; `like` says where shares are kept."""
        nothing = torch.zeros(2, device=like.device)  # of a layer that did not run
        sums = torch.stack([sum((s.to(like.device) for s in squares), nothing) for squares in self._squares])
        self.batches.append(share(*sums.unbind(1)))
        self._largest = None
        self.begin()

    def largest(self) -> Tensor | None:
        """(layers,) the largest of the last batches, of all processes after `agree`; None where nothing was seen."""
        if self._largest is not None or not self.batches:
            return self._largest
        return torch.stack([*self.batches]).amax(0)

    def agree(self, device: Any) -> None:
        """All processes have the largest of any: they call this together."""
        largest = self.largest()
        if largest is None or not is_distributed():
            return
        largest = largest.to(device, copy=True)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        self._largest = largest

    def state(self, i: int) -> Tensor:
        """The shares of layer i in the last batches, on the CPU."""
        return torch.stack([batch[i] for batch in self.batches]).cpu() if self.batches else torch.zeros(0)

    def load(self, states: Sequence[Tensor], device: Any) -> None:
        """Go on from what every layer's `state` was."""
        self.batches = deque(torch.stack([*states], 1).to(device).unbind(), maxlen=WINDOW)
        self._largest = None


def share(n: Tensor, f: Tensor) -> Tensor:
    """sqrt(n / f) of two sums of squares; 0 where n is, and a number however small f is.

    Examples:
        >>> share(torch.tensor([0.0, 4.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]))
        tensor([0.0000e+00, 2.0000e+00, 1.8447e+19])
    """
    return torch.where(n == 0, n, n / f).clamp(max=torch.finfo(n.dtype).max).sqrt()


def ranked(names: Sequence[str], shares: Tensor | None, strict: Sequence[bool]) -> Report:
    """The share of every layer, None where that is no number; the largest comes first."""
    values = [math.nan] * len(names) if shares is None else shares.tolist()
    rows = sorted(zip(names, values, strict, strict=True), key=lambda row: -row[1] if row[1] == row[1] else -math.inf)
    return [
        {"layer": name, "share": value if math.isfinite(value) else None, "strict": is_strict}
        for name, value, is_strict in rows
    ]


def format_report(who: str, report: Report) -> str:
    """The report in words."""
    lines = [
        f"  {v['layer']}: {'not a number' if v['share'] is None else format(v['share'], '.2g')}"
        f"{', strict' if v['strict'] else ''}"
        for v in report
    ]
    return "\n".join([f"{who}, the branch's share |n(x)| / |f(x)| of every layer:", *lines])
