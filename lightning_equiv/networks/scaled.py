"""Inputs in the units that a network expects."""

from __future__ import annotations

from torch import Tensor, nn


class Scaled(nn.Module):
    """A network on particles whose masses and velocities are brought to about one; scaling commutes with rotations.

    Args:
        net: (masses, positions, velocities) -> positions.
        masses: factor of the masses.
        velocities: factor of the velocities.
    """

    def __init__(self, net: nn.Module, masses: float = 0.1, velocities: float = 0.1) -> None:
        super().__init__()
        self.net, self.masses, self.velocities = net, masses, velocities

    def forward(self, masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Final positions (B, N, 3)."""
        return self.net(self.masses * masses, positions, self.velocities * velocities)
