"""What a branch is made of: networks that know no symmetry."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class LinearBranch(nn.Module):
    """n(x) = W x, dense over all channels and components of the features."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * scale / math.sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out)."""
        return nn.functional.linear(x, self.weight)


class MLPBranch(nn.Module):
    """n(x) = W_2 gelu(W_1 x + b)."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.inner = nn.Linear(in_features, in_features)
        self.outer = LinearBranch(in_features, out_features, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out)."""
        out: Tensor = self.outer(nn.functional.gelu(self.inner(x)))
        return out


def normalised(network: nn.Module) -> nn.Module:
    """A branch that cannot grow: W / |W|_2 for its matrix (by power iteration), an output of RMS 1 for an MLP."""
    if isinstance(network, MLPBranch):
        return nn.Sequential(network, nn.RMSNorm(network.outer.weight.shape[0], elementwise_affine=False))
    return parametrizations.spectral_norm(network)
