"""ACE written by hand: the levels are numbers of the module, and the two steps on them stand in its hooks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import ACE
from tests.strategies.relaxed_by_hand import LAYERS, BranchesByHand, clip_each
from tests.strategies.toys import Plain

GAMMA_LR, DUAL_LR, DAMPING, END, RHO = 0.1, 0.2, 0.4, 0.7, 0.9


def make_ace(**changes: Any) -> ACE:
    settings = {"gamma_lr": GAMMA_LR, "dual_lr": DUAL_LR, "damping": DAMPING, "end": END, "threshold": 0.0}
    return ACE("SO(3)", LAYERS, **{**settings, **changes})


def make_resilient(**changes: Any) -> ACE:
    """With a threshold that leaves no layer relaxed, so that the module is the user's after training."""
    return make_ace(
        **{"mode": "resilient", "rho": RHO, "threshold": 1e9, "init": 0.8, "evaluate": "projected", **changes}
    )


class AceByHand(BranchesByHand):
    """The twin: the branches are modules of the module, gamma and lambda two lists."""

    make = staticmethod(make_ace)
    start = 1.0

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        strategy, borrowed = self.make(), Plain()
        strategy.attach(borrowed)  # only to start from the same numbers
        self.branches = nn.ModuleList(copy.deepcopy(b.network) for b in strategy.branches)
        strategy.detach()
        self.gammas = [torch.tensor(self.start, dtype=torch.float64, requires_grad=True) for _ in LAYERS]
        self.lambdas = [0.0, 0.0]
        self.step = 0

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        ours = [] if self.over() else [self.branches.parameters()]
        clip_each(gradient_clip_val, gradient_clip_algorithm, self.net.parameters(), *ours)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        for gamma in self.gammas:
            gamma.grad = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step = self.global_step

    def over(self) -> bool:
        return self.step >= END * self.trainer.estimated_stepping_batches

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.step or self.over():
            return  # gradients are being accumulated, or nothing is relaxed any more
        gradients = torch.stack([gamma.grad for gamma in self.gammas])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradients)
            gradients /= torch.distributed.get_world_size()
        for i, gamma in enumerate(self.gammas):
            if gradients.isfinite().all():
                self.lambdas[i] = self.move(gamma, gradients[i].item(), self.lambdas[i])
            gamma.grad = None

    def move(self, gamma: Tensor, gradient: float, lam: float) -> float:
        """Move gamma; lambda after it."""
        gamma.data -= GAMMA_LR * (gradient + lam + 2 * DAMPING * gamma.item())
        return lam + DUAL_LR * gamma.item()

    def relaxed(self, x: Tensor) -> Tensor:
        if self.over():
            return self.net[2](torch.tanh(self.net[0](x)))
        first, second = self.gammas
        a = torch.tanh(self.net[0](x) + first.to(x.dtype) * self.branches[0](x))
        return self.net[2](a) + second.to(a.dtype) * self.branches[1](a)

    def again(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            kept = [gamma.clone() for gamma in self.gammas]
        learned, self.gammas = self.gammas, kept
        output = self.relaxed(x)
        self.gammas = learned
        return output


class ResilientByHand(AceByHand):
    """The twin of what may stay relaxed: never over, and what is paid for is |gamma| - lambda / rho."""

    make = staticmethod(make_resilient)
    start = 0.8

    def over(self) -> bool:
        return False

    def move(self, gamma: Tensor, gradient: float, lam: float) -> float:
        g = gamma.item()
        price = max(0.0, lam + 2 * DAMPING * (abs(g) - lam / RHO))
        gamma.data -= GAMMA_LR * (gradient + (price if g > 0 else -price if g < 0 else 0.0))
        return max(0.0, lam + DUAL_LR * (abs(gamma.item()) - lam / RHO))
