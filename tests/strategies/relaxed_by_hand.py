"""Constraint relaxation written by hand: two matrices, a triangle, and loops over samples and generators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation
from tests.strategies.toys import Plain

LAYERS = {"net.0": ("1o", "16x0e"), "net.2": ("16x0e", "1o")}
PEAK, END, LIE, NORM = 0.5, 0.8, 0.3, 0.2


def make_relaxation(**changes: Any) -> ConstraintRelaxation:
    settings = {"peak": PEAK, "end": END, "lie_weight": LIE, "norm_weight": NORM, "init_scale": 0.5}
    return ConstraintRelaxation("SO(3)", LAYERS, **{**settings, **changes})


class BranchesByHand(Plain):
    """A twin of a strategy with branches: `relaxed` is the network, written out with what stands beside its layers."""

    passes: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = staticmethod(lambda net, x: net(x))

    def relaxed(self, x: Tensor) -> Tensor:
        """The network, relaxed as in this step."""
        raise NotImplementedError

    def again(self, x: Tensor) -> Tensor:
        """Another pass, whose levels are those of the last call of `relaxed`, held constant."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.task(lambda x: self.passes(self.relaxed, x), *batch)


class RelaxedByHand(BranchesByHand):
    """The twin: the branches are parameters of the module, and everything stands in `training_step`.

    The penalties are means over the rows of all calls of a layer.
    """

    make = staticmethod(make_relaxation)

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        strategy, borrowed = self.make(), Plain()
        strategy.attach(borrowed)  # only to start from the same matrices
        self.W, self.V = (nn.Parameter(b.network.weight.detach().clone()) for b in strategy.branches)
        strategy.detach()

    def theta(self) -> float:
        p = self.global_step / (self.trainer.estimated_stepping_batches * END)
        return PEAK * max(0.0, 2 * p if p <= 0.5 else 2 - 2 * p)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """The network's gradients and those of the branches, each by itself."""
        clip_each(gradient_clip_val, gradient_clip_algorithm, self.net.parameters(), [self.W, self.V])

    def relaxed(self, x: Tensor) -> Tensor:
        h = self.net[0](x) + self.theta() * (x @ self.W.to(x.dtype).T)
        a = torch.tanh(h)
        self.rows.append((x.detach(), a.detach()))
        return self.net[2](a) + self.theta() * (a @ self.V.to(a.dtype).T)

    def again(self, x: Tensor) -> Tensor:
        seen, self.rows = self.rows, []
        output = self.relaxed(x)  # theta is a number
        self.rows = seen
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.rows: list[tuple[Tensor, Tensor]] = []
        loss = super().training_step(batch, batch_idx)
        if self.theta() == 0:
            return loss
        with torch.autocast("cpu", enabled=False):
            x, a = (torch.cat(rows).to(self.W.dtype) for rows in zip(*self.rows, strict=True))
            lie = slow_root(x, lambda v, L: self.W @ (L @ v)) + slow_root(a, lambda v, L: -(L @ (self.V @ v)))
            norm = (sum((self.W @ v).square().sum() for v in x) / len(x)).sqrt()
            norm = norm + (sum((self.V @ v).square().sum() for v in a) / len(a)).sqrt()
        return loss + LIE * lie + NORM * norm


FOLDED_LAYERS = {"net.0": ("1o", "4x1o+4x0e"), "net.2": ("4x1o+4x0e", "1o")}


def make_nearest(**changes: Any) -> ConstraintRelaxation:
    settings = {"projection": "nearest", "peak": PEAK, "init_scale": 0.5}
    return ConstraintRelaxation("SO(3)", FOLDED_LAYERS, **{**settings, **changes})


class NearestByHand(RelaxedByHand):
    """The twin: the branches stay at their peak, and what commutes of layers and branches is all that is left of them.

    No penalties.
    """

    make = staticmethod(make_nearest)

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.register_buffer("folded", torch.tensor(False))

    def theta(self) -> float:
        return 0.0 if self.folded else PEAK

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self.folded and self.global_step >= 0.5 * self.trainer.estimated_stepping_batches:
            vectors = [range(3 * c, 3 * c + 3) for c in range(4)]  # of the hidden features; 12 .. 15 are scalars
            with torch.no_grad():
                for A, W in ((self.net[0].weight, self.W), (self.net[2].weight.T, self.V.T)):  # (16, 3)
                    whole = A.double() + PEAK * W.double()  # rounded once
                    A.zero_()
                    for places in vectors:
                        A[places] = (torch.eye(3).to(whole) * whole[places].trace() / 3).to(A)
                self.net[0].bias[:12] = 0
                self.net[2].bias[:] = 0
            self.folded.fill_(True)
        self.rows: list[tuple[Tensor, Tensor]] = []
        return BranchesByHand.training_step(self, batch, batch_idx)


def clip_each(value: float | None, algorithm: str | None, *groups: Iterable[nn.Parameter]) -> None:
    """Clip the gradients of every group by itself."""
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    for group in groups if value else ():
        clip(group, value)


def slow_root(rows: Tensor, commutator: Any) -> Tensor:
    """sqrt( mean_x sum_i | C_i x |^2 ), sample by sample and generator by generator."""
    total = torch.zeros((), dtype=rows.dtype)
    for v in rows:
        for i in range(3):
            L = torch.zeros(3, 3, dtype=rows.dtype)  # (L v)_j = (e_i x v)_j
            L[(i + 2) % 3, (i + 1) % 3], L[(i + 1) % 3, (i + 2) % 3] = 1, -1
            total = total + commutator(v, L).square().sum()
    return (total / len(rows)).sqrt()
