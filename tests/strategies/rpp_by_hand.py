"""Residual pathway priors written by hand: two matrices beside the layers, and two sums of squares in the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import RPP
from tests.strategies.relaxed_by_hand import LAYERS, BranchesByHand, clip_each
from tests.strategies.toys import Plain

FREE, EQUIVARIANT = 0.6, 0.1


def make_rpp(**changes: Any) -> RPP:
    settings = {"free_weight": FREE, "equivariant_weight": EQUIVARIANT, "init_scale": 0.5, "finalize": "drop"}
    return RPP("SO(3)", LAYERS, "net", **{**settings, **changes})


class RppByHand(BranchesByHand):
    """The twin: the branches are parameters of the module, and the priors stand in `training_step`."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        strategy, borrowed = make_rpp(), Plain()
        strategy.attach(borrowed)  # only to start from the same matrices
        self.W, self.V = (nn.Parameter(b.network.weight.detach().clone()) for b in strategy.branches)
        strategy.detach()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_each(gradient_clip_val, gradient_clip_algorithm, self.net.parameters(), [self.W, self.V])

    def relaxed(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.net[0](x) + x @ self.W.to(x.dtype).T)
        return self.net[2](a) + a @ self.V.to(a.dtype).T

    def again(self, x: Tensor) -> Tensor:
        return self.relaxed(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for weight, parameters in ((FREE, [self.W, self.V]), (EQUIVARIANT, self.net.parameters())):
            for p in parameters:
                loss = loss + weight / 2 * (p * p).sum()
        return loss
