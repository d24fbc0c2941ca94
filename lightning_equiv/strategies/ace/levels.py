"""gamma and lambda of all layers while they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.layers.branch import Branch
from lightning_equiv.strategies.ace.multipliers import Rates, dual_step
from lightning_equiv.strategies.learned_level import Learned
from lightning_equiv.wiring.ranks import mean_over_ranks


@dataclass(eq=False)
class Levels(Learned):
    """What ACE keeps beside its branches.

    gamma is no parameter of any module: the user's optimizer, weight decay, clipping and averages do not see it.

    Attributes:
        branches: of the layers, whose `theta` are views of gamma.
        gamma: (layers,) what the branches are multiplied with; backward passes leave its gradient there.
        lam: (layers,) the multipliers.
        rates: step sizes of this run; None before the first step.
        closed: gamma is 0 for good.
        scaler: of mixed precision in float16, if the optimizer has one.
        scale: what it multiplied the loss of this step with.
    """

    branches: list[Branch]
    gamma: Tensor
    lam: Tensor
    rates: Rates | None = None
    closed: bool = False
    scaler: Any = None
    scale: float = 1.0

    def set(self, gamma: Tensor, lam: Tensor, device: Any = None) -> None:
        """Begin or go on from these."""
        like = self.branches[0].theta
        gamma, lam = (x.detach().to(like.device if device is None else device, like.dtype) for x in (gamma, lam))
        self.gamma, self.lam = gamma.clone().requires_grad_(), lam.clone()
        for b, theta in zip(self.branches, self.gamma.detach(), strict=True):
            b.theta = theta

    def level(self, i: int, module: nn.Module) -> Any:
        """(x, f(x)) -> theta of a call of layer i: gamma with its gradient in a training step of the module."""

        def level(x: Tensor, f_x: Tensor) -> Tensor:
            branch = self.branches[i]
            return self.gamma[i].to(x.device) if branch.learns(module) else branch.theta

        return level

    def close(self) -> None:
        """gamma is 0, and no branch runs."""
        self.closed = True
        with torch.no_grad():
            self.gamma.zero_()
        for b in self.branches:
            b.active = False

    @torch.no_grad()
    def update(self, rho: float | None) -> None:
        """One step of gamma and lambda by the mean gradient of all processes, in one message."""
        gradient, self.gamma.grad = self.gamma.grad, None
        scaler, self.scaler = self.scaler, None
        if self.closed or self.rates is None:
            return
        message = self.gamma.new_zeros(len(self.gamma) + 1)  # the last says whether there was a gradient
        if gradient is not None:
            message = torch.cat([gradient, gradient.new_ones(1)])
        message = mean_over_ranks(message)
        skipped = scaler is not None and scaler.get_scale() < self.scale  # by all processes
        mean, self.scale = message[:-1] / self.scale, 1.0
        if skipped:
            return
        taken = (message[-1] > 0) & mean.isfinite().all()  # without a wait for the device
        gamma, lam = dual_step(self.gamma, self.lam, mean, self.rates, rho)
        self.gamma.copy_(torch.where(taken, gamma, self.gamma))
        self.lam.copy_(torch.where(taken, lam, self.lam))
