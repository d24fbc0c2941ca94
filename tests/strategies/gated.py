"""A strict network of e3nn, and data of a law that is symmetric but for a push."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from tests.helpers import global_seed, normal
from tests.strategies.toys import Plain


class Gated(nn.Module):
    """An SO(3)-equivariant network of a vector and its length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = o3.Linear("0e+1o", "8x0e+8x1o"), o3.Linear("8x0e+8x1o", "1o")

    def forward(self, x: Tensor) -> Tensor:
        s, v = self.first(x).split([8, 24], -1)
        v = v.unflatten(-1, (8, 3)) * torch.sigmoid(s)[..., None]
        return self.second(torch.cat([nn.functional.silu(s), v.flatten(-2)], -1))


class Regression(Plain):
    def __init__(self) -> None:
        with global_seed():
            super().__init__(Gated())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def law(n: int, push: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs 0e+1o, |x| and x, and targets 1o, |x| x / 2 and a push along z that no rotation moves."""
    x = normal(n, 3, seed=seed).float()
    r = x.norm(dim=-1, keepdim=True)
    return torch.cat([r, x], -1), x * r / 2 + push * r * torch.tensor([0.0, 0.0, 1.0])
