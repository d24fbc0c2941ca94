"""Symmetry cloning written by hand: a loop before training, and one line in `training_step`."""

from __future__ import annotations

import math
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import Symmetry, SymmetryCloning
from lightning_equiv._random import derived_generator
from tests.helpers import global_seed
from tests.strategies.toys import Plain

STEPS, LR, BATCH, WEIGHT = 50, 1e-2, 16, 0.5
SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs="1o")


class Stretch(nn.Module):
    """Phi(x) = sum_c b_c tanh(|a_c x|) a_c x: it commutes with rotations."""

    def __init__(self) -> None:
        super().__init__()
        with global_seed(5):
            self.a, self.b = o3.Linear("1o", "4x1o"), o3.Linear("4x1o", "1o")

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).unflatten(-1, (4, 3))
        return self.b((h * h.norm(dim=-1, keepdim=True).tanh()).flatten(-2))


def make_cloning(**changes: Any) -> SymmetryCloning:
    settings = {"symmetry": SYMMETRY, "inputs": [(3,)], "steps": STEPS, "lr": LR, "batch_size": BATCH, "weight": WEIGHT}
    return SymmetryCloning(Stretch(), "net", **{**settings, "tolerance": 1.9, **changes})


class ClonedByHand(Plain):
    """The twin of mode="break"."""

    clone: list[Tensor]

    def on_fit_start(self) -> None:
        like = next(self.net.parameters())
        wide = torch.promote_types(like.dtype, torch.float32)
        teacher = Stretch().to(wide)
        optimizer = torch.optim.Adam(self.net.parameters(), lr=LR)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LR / 100 + (LR - LR / 100) * (1 + math.cos(math.pi * step / STEPS)) / 2
            x = torch.randn(BATCH, 3, generator=derived_generator("x", 0, step)).to(wide)
            phi = teacher(x).detach()
            loss = (self.net(x.to(like.dtype)).to(wide) - phi).square().sum() / phi.square().sum()
            gradients = torch.autograd.grad(loss, list(self.net.parameters()))
            for p, gradient in zip(self.net.parameters(), gradients, strict=True):
                p.grad = gradient
            optimizer.step()
        for p in self.net.parameters():
            p.grad = None
        self.clone = [p.detach().clone() for p in self.net.parameters()]

    def pull(self) -> float:
        return WEIGHT

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for p, start in zip(self.net.parameters(), self.clone, strict=True):
            loss = loss + self.pull() / 2 * (p - start).square().sum()
        return loss


class AnnealedByHand(ClonedByHand):
    """The twin of mode="anneal"."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.left = 1 - self.global_step / self.trainer.estimated_stepping_batches  # LBFGS counts while it steps

    def pull(self) -> float:
        return WEIGHT * self.left
