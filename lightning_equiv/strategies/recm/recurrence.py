"""The recurrent state of a relaxed layer, and theta of a call, with a gradient to what it is learned by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import element_dtype
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
from lightning_equiv.wiring.in_place import version
from lightning_equiv.wiring.ranks import mean_over_ranks
from lightning_equiv.wiring.recomputation import in_backward


@dataclass
class Step:
    """What all layers share in a training step.

    Attributes:
        gain: b.
        y: the target; None takes each layer's own output.
        draw: number of rows -> group elements for them.
        version: of y when the step began.
    """

    gain: float
    y: Tensor | None
    draw: Callable[[int], Draw]
    version: int = 0

    def __post_init__(self) -> None:
        self.version = 0 if self.y is None else version(self.y)

    def check(self) -> None:
        """RuntimeError where the target is not what it was."""
        if self.y is not None and version(self.y) != self.version:
            raise RuntimeError(
                f"RECM: the target of shape {tuple(self.y.shape)} was changed in place in the step, and the layers "
                "would see different ones: write `y = y - 1` in the place of `y -= 1`, or let the network, where the "
                "target is its input, work on a copy, `self.net(x.clone())`"
            )


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
        squares: (2,) running mean squares of x and y, the same on every process; NaN before the first step.
        first: those of this process's first call, until then.
        pending: (s, mean squares) of every call on this process since the last optimizer step.
    """

    def __init__(
        self, branch: Branch, critic: LipschitzCritic, target: Representation | None, max_rows: int, relaxed: bool
    ) -> None:
        self.branch, self.critic, self.target, self.max_rows = branch, critic, target, max_rows
        w = critic.w.detach().double()
        self.h = w / w.norm() if relaxed else torch.zeros_like(w)
        self.squares = torch.full_like(w[:1].expand(2), torch.nan)
        self.first: Tensor | None = None
        self.pending: list[tuple[Tensor, Tensor]] = []

    def level(self, step: Step, x: Tensor, f_x: Tensor, again: bool = False) -> Tensor:
        """theta of one call of the layer, from the state that this call would leave.

        Args:
            step: that is running.
            x: of the layer.
            f_x: what it made of it.
            again: backward runs again what was called before: nothing is remembered.
        """
        step.check()
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
        if self.first is None:
            self.first = finite(squares, torch.ones_like(squares))
        scales = finite(self.squares.to(squares), self.first)
        s = violation(self.critic, x_rows, y_rows, step.draw(count), scales)
        theta = self.critic.direction().to(s) @ torch.lerp(self.h.to(s), s, step.gain)
        if not again:
            self.pending.append((s.detach(), squares))
            self.branch.theta = theta.detach()
        return theta

    def sums(self) -> Tensor:
        """What this process saw since the last time: sums and numbers of what is finite, and its first mean squares."""
        w = self.critic.w.detach()
        like = w.to(element_dtype(w.device))
        sums, numbers = like.new_zeros(2, len(w) + 2)
        if self.pending:
            seen = torch.stack([torch.cat([s.to(like), squares.to(like)]) for s, squares in self.pending])
            is_finite = seen.isfinite()
            sums, numbers = torch.where(is_finite, seen, 0).sum(0), is_finite.sum(0)
        first = like.new_zeros(3) if self.first is None else torch.cat([self.first.to(like), like.new_ones(1)])
        return torch.cat([sums, numbers, first])

    def take_up(self, sums: Tensor, gain: float) -> None:
        """h <- (1 - b) h + b s with the mean s of all processes' `sums`; the mean squares alike."""
        n = len(self.critic.w)
        seen = sums[: n + 2] / sums[n + 2 : 2 * n + 4]
        s, squares, first = seen[:n], seen[n:], sums[-3:-1] / sums[-1]
        h, held = self.h.to(s), finite(self.squares.to(s), first)
        self.h, self.squares = torch.lerp(h, finite(s, h), gain), torch.lerp(held, finite(squares, held), gain)
        self.first, self.pending = None, []

    def read(self) -> None:
        """theta of the state."""
        with torch.no_grad():
            w = self.critic.direction()
            self.branch.theta = w @ self.h.to(w)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"h": self.h.cpu(), "squares": self.squares.cpu()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.h, self.squares, self.first, self.pending = state["h"].clone(), state["squares"].clone(), None, []
        self.read()


def make_level(
    recurrence: Recurrence, module: nn.Module, now: Callable[[], Step | None]
) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, f(x)) -> theta of a call: of the step that runs, or that backward runs again; else that of the state.

    Args:
        recurrence: of the layer.
        module: the LightningModule.
        now: gives the step, until its backward pass is over.
    """

    def level(x: Tensor, f_x: Tensor) -> Tensor:
        step = now()
        if step is None or not recurrence.branch.learns(module):
            return recurrence.branch.theta
        with torch.autocast(x.device.type, enabled=False):
            return recurrence.level(step, x, f_x, again=in_backward())

    disabled: Callable[[Tensor, Tensor], Tensor] = torch.compiler.disable(level)  # a break in a compiled graph
    return disabled


def commit(recurrences: Iterable[Recurrence], gain: float) -> None:
    """The states of all layers take up what every process saw: one message between them, whoever called what."""
    recurrences = list(recurrences)
    sums = [recurrence.sums() for recurrence in recurrences]
    totals = mean_over_ranks(torch.cat(sums)).split([len(own) for own in sums])
    for recurrence, total in zip(recurrences, totals, strict=True):
        recurrence.take_up(total, gain)
        recurrence.read()


def finite(x: Tensor, otherwise: Tensor) -> Tensor:
    """x, or `otherwise` if a number in x is none: one bad batch must not stay in a state for good."""
    return torch.where(torch.isfinite(x).all(), x, otherwise)
