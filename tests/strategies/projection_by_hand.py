"""The projection penalty written by hand: two matrices, their blocks, and a quotient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import EquivarianceProjection
from lightning_equiv.wiring.ranks import mean_over_ranks
from tests.strategies.toys import Plain

HIDDEN = "4x0e+4x1o"
# of `make_net` ("net.0", "net.2"), and of the same network with names ("net.first", "net.last")
PROJECTED = {"net.[0f]*": ("1o", HIDDEN), "net.[2l]*": (HIDDEN, "1o")}
WEIGHT, TOLERANCE = 2.0, 0.9


def make_projection(**changes: Any) -> EquivarianceProjection:
    settings = {} if "tolerance" in changes else {"weight": WEIGHT}
    return EquivarianceProjection("SO(3)", PROJECTED, **{**settings, **changes})


def make_tolerance(**changes: Any) -> EquivarianceProjection:
    return make_projection(tolerance=TOLERANCE, **changes)


def equivariant(first: nn.Linear, last: nn.Linear) -> list[tuple[Tensor, Tensor]]:
    """(W, P W) and (b, P b) of two layers, from one vector to 4 scalars and 4 vectors and back.

    A map between two vectors that commutes with all rotations is a multiple of the identity, one that does between a
    vector and a scalar is 0, and so is an invariant vector.
    """
    dtype = torch.promote_types(first.weight.dtype, torch.float32)
    W, b, V, c = (p.to(dtype) for p in (first.weight, first.bias, last.weight, last.bias))
    return [
        (torch.cat([W.flatten(), b]), torch.cat([0 * W[:4].flatten(), multiples(W[4:]).flatten(), b[:4], 0 * b[4:]])),
        (
            torch.cat([V.flatten(), c]),
            torch.cat([torch.cat([0 * V[:, :4], multiples(V[:, 4:].T).T], dim=1).flatten(), 0 * c]),
        ),
    ]


def multiples(W: Tensor) -> Tensor:
    """The multiples of the identity nearest to each block of three rows of W (3 k, 3)."""
    return torch.cat([block.trace() / 3 * torch.eye(3).to(block) for block in W.split(3)])


def penalty(first: nn.Linear, last: nn.Linear) -> Tensor:
    """The mean of e^2 over the two layers."""
    squares = [(w - p).square().sum() / w.detach().square().sum() for w, p in equivariant(first, last)]
    return (squares[0] + squares[1]) / 2


class ProjectionByHand(Plain):
    """The task loss and the penalty."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.task(self.net, *batch) + WEIGHT * penalty(self.net[0], self.net[2])


class ToleranceByHand(Plain):
    """beta e^2 / tolerance^2, with beta by dual ascent in its logarithm."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.beta, self.square, self.scale, self.log_beta, self.steps = 0.0, 0.0, 0.0, 0.0, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, error = self.task(self.net, *batch), penalty(self.net[0], self.net[2]) / TOLERANCE**2
        total = loss + self.beta * error
        now, task = mean_over_ranks(torch.stack([error.detach().double(), loss.detach().double()])).tolist()
        self.square = now if not self.steps else self.square + 0.05 * (now - self.square)
        if self.steps < 10:
            self.scale += (abs(task) - self.scale) / (self.steps + 1)
        if not self.steps:
            self.log_beta = math.log(min(1e-3, 0.01 / now))
        self.log_beta += 0.03 * max(-1.0, min(1.0, math.log(self.square) / 2))
        self.log_beta = max(math.log(1e-6), min(math.log(0.1), self.log_beta))
        self.steps += 1
        self.beta = math.exp(self.log_beta) * self.scale
        return total
