"""The recurrent state of a relaxed layer, and theta of a call, with a gradient to what it is learned by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.layers.branch import Branch
from lightning_equiv.representations.representation import Representation
from lightning_equiv.strategies.recm.critic import (
    Draw,
    LipschitzCritic,
    feature_rows,
    mean_squares,
    violation,
)
from lightning_equiv.strategies.recm.target import target_rows
from lightning_equiv.wiring.ranks import mean_over_ranks


@dataclass
class Step:
    """What all layers share in a training step.

    Attributes:
        gain: b.
        y: the target; None takes each layer's own output.
        draw: number of rows -> group elements for them.
    """

    gain: float
    y: Tensor | None
    draw: Callable[[int], Draw]


class Recurrence:
    """h, u and w of one layer: h <- (1 - b) h + b s, theta = < w / |w|, h >.

    Args:
        branch: of the layer.
        critic: u and w.
        target: how the group moves the target.
        max_rows: rows that s is averaged over.
        relaxed: start from h = w / |w|, theta = 1, or from 0.

    Attributes:
        h: (state_dim,) the state.
        squares: (2,) running mean squares of x and y; None before the first step.
        pending: (s, mean squares) of every call since the last optimizer step.
    """

    def __init__(
        self, branch: Branch, critic: LipschitzCritic, target: Representation | None, max_rows: int, relaxed: bool
    ) -> None:
        self.branch, self.critic, self.target, self.max_rows = branch, critic, target, max_rows
        w = critic.w.detach().double()
        self.h = w / w.norm() if relaxed else torch.zeros_like(w)
        self.squares: Tensor | None = None
        self.pending: list[tuple[Tensor, Tensor]] = []

    def level(self, step: Step, x: Tensor, f_x: Tensor) -> Tensor:
        """theta of one call of the layer, from the state that this call would leave."""
        x_rows = feature_rows(self.branch, x, "in")
        count = len(x_rows.values)
        if step.y is None:
            y_rows = feature_rows(self.branch, f_x, "out")
        else:
            assert self.target is not None
            y_rows = target_rows(step.y, self.target, count, x_rows.values.dtype)
        if count > self.max_rows:
            index = torch.arange(self.max_rows, device=x.device) * count // self.max_rows
            x_rows, y_rows, count = x_rows.take(index), y_rows.take(index), self.max_rows
        squares = mean_squares(x_rows, y_rows)
        if self.squares is None:
            first = mean_over_ranks(squares)
            self.squares = finite(first, torch.ones_like(first))
        s = violation(self.critic, x_rows, y_rows, step.draw(count), self.squares.to(squares))
        s, squares = mean_over_ranks(torch.cat([s, squares])).split([len(s), len(squares)])
        self.pending.append((s.detach(), squares.detach()))
        theta = self.critic.direction().to(s) @ torch.lerp(self.h.to(s), s, step.gain)
        self.branch.theta = theta.detach()
        return theta

    def commit(self, gain: float) -> None:
        """h <- (1 - b) h + b s with the mean s since the last time; the mean squares alike; theta from them."""
        if self.pending:
            nan = float("nan")
            s, squares = (
                torch.stack(values).nan_to_num(nan, nan, nan).nanmean(0) for values in zip(*self.pending, strict=True)
            )
            assert self.squares is not None
            h, held = self.h.to(s), self.squares.to(squares)
            self.h, self.squares = torch.lerp(h, finite(s, h), gain), torch.lerp(held, finite(squares, held), gain)
            self.pending = []
        with torch.no_grad():
            w = self.critic.direction()
            self.branch.theta = w @ self.h.to(w)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"h": self.h.cpu(), "squares": None if self.squares is None else self.squares.cpu()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.h, self.squares, self.pending = state["h"].clone(), state["squares"], []


def finite(x: Tensor, otherwise: Tensor) -> Tensor:
    """x, or `otherwise` if a number in x is none: one bad batch must not stay in a state for good."""
    return torch.where(torch.isfinite(x).all(), x, otherwise)
