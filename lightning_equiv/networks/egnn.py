"""An equivariant graph network of scalars and differences: it commutes with E(3) and permutations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_equiv.networks.e3nn_message_passing import neighbours


class EGNN(nn.Module):
    """From charges, positions and velocities to the final positions, by moving the particles layer by layer.

        m_ij = message(h_i, h_j, |x_i - x_j|^2, q_i q_j)
        v_i  = velocity(h_i) v_i + mean_j (x_i - x_j) push(m_ij)
        x_i  = x_i + v_i
        h_i  = h_i + update(h_i, sum_j m_ij)

    The arguments and the neighbours are those of `E3nnMessagePassing`.

    Args:
        num_channels: Width of h and m.
        num_layers: Rounds of message passing.
        num_neighbours: The nearest particles that send messages.

    Reference:
        @inproceedings{satorras2021en,
          title={E(n) Equivariant Graph Neural Networks},
          author={Satorras, Victor Garcia and Hoogeboom, Emiel and Welling, Max},
          booktitle={International Conference on Machine Learning},
          year={2021}
        }
    """

    def __init__(self, num_channels: int = 64, num_layers: int = 4, *, num_neighbours: int = 7) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.embed = nn.Linear(2, num_channels)
        self.layers = nn.ModuleList(Layer(num_channels, last=i == num_layers - 1) for i in range(num_layers))

    def forward(self, charges: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Final positions (B, N, 3) from charges (B, N), positions and velocities (B, N, 3)."""
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()[:, None]
        j = neighbours(positions, self.num_neighbours)  # (B N, k)
        products = q[:, None] * q[j]
        h = self.embed(torch.cat([q, v.square().sum(-1, keepdim=True)], dim=-1))
        for layer in self.layers:
            h, x, v = layer(h, x, v, j, products)
        return x.view_as(positions)


class Layer(nn.Module):
    """One round; the last has no use for an update of h."""

    def __init__(self, c: int, *, last: bool) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * c + 2, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU())
        self.push = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, 1, bias=False))
        self.velocity = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, 1))
        self.update = None if last else nn.Sequential(nn.Linear(2 * c, c), nn.SiLU(), nn.Linear(c, c))

    def forward(self, h: Tensor, x: Tensor, v: Tensor, j: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """To the same shapes: h (n, c), x and v (n, 3), neighbours j (n, k), products of charges (n, k, 1)."""
        n, k = j.shape
        difference = x[:, None] - x[j]
        squared = difference.square().sum(-1, keepdim=True)
        h_j = h.index_select(0, j.flatten()).unflatten(0, (n, k))
        m = self.message(torch.cat([h[:, None].expand_as(h_j), h_j, squared, products], dim=-1))
        v = self.velocity(h) * v + (difference * self.push(m)).mean(1)
        if self.update is not None:
            h = h + self.update(torch.cat([h, m.sum(1)], dim=-1))
        return h, x + v, v
