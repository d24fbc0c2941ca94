"""A steerable E(3)-equivariant graph network (SEGNN) on particles: tensor products with spherical harmonics, gated."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.networks.e3nn_message_passing import neighbours

ATTRIBUTES = o3.Irreps("0e+1o")  # of the spherical harmonics, l_max = 1


class SEGNN(nn.Module):
    """From charges, positions and velocities to the final positions.

    With j over the neighbours of i, ``f x_a W`` the fully connected tensor product of f with the attribute a, Y the
    spherical harmonics up to l = 1 of a direction, and g a gate, which makes SiLU of scalars and sigmoids of vectors:

        a_ij = Y(x_i - x_j)                                 a_i = mean_j a_ij + Y(v_i)
        m_ij = g(g([f_i, f_j, |x_i - x_j|^2, q_i q_j] x_aij W_1) x_aij W_2)
        f_i  = f_i + g([f_i, sum_j m_ij] x_ai W_3) x_ai W_4
        x_i' = x_i + g(f_i x_ai W_5) x_ai W_6

    Every ``W`` is an `e3nn.o3.FullyConnectedTensorProduct`: ``layers.0.message_1``, ``.message_2``, ``.update_1`` and
    ``.update_2`` of each layer, ``embed``, ``head_1`` and ``head_2``. Gates add a bias to scalars first.

    Args:
        hidden: Scalars and vectors of each particle, "Sx0e+Vx1o".
        num_layers: Rounds of message passing.
        num_neighbours: The nearest particles that send messages.

    Raises:
        ValueError: When ``hidden`` is not made of 0e and 1o.

    Reference:
        @inproceedings{brandstetter2022geometric,
          title={Geometric and Physical Quantities Improve E(3) Equivariant Message Passing},
          author={Brandstetter, Johannes and Hesselink, Rob and van der Pol, Elise and Bekkers, Erik J. and
                  Welling, Max},
          booktitle={International Conference on Learning Representations},
          year={2022}
        }
    """

    def __init__(self, hidden: str = "32x0e+32x1o", num_layers: int = 4, *, num_neighbours: int = 7) -> None:
        super().__init__()
        irreps = o3.Irreps(hidden)
        scalars, vectors = irreps.count("0e"), irreps.count("1o")
        if irreps.num_irreps != scalars + vectors or not scalars or not vectors:
            raise ValueError(f'hidden must be made of 0e and 1o, such as "32x0e+32x1o", got "{hidden}".')
        self.num_neighbours = num_neighbours
        self.embed = product("2x0e+1x1o", f"{scalars}x0e+{vectors}x1o")
        self.layers = nn.ModuleList(Layer(scalars, vectors) for _ in range(num_layers))
        self.head_1 = product(f"{scalars}x0e+{vectors}x1o", f"{scalars + vectors}x0e+{vectors}x1o")
        self.gate = Gate(scalars, vectors)
        self.head_2 = product(f"{scalars}x0e+{vectors}x1o", "1x1o")

    def forward(self, charges: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Final positions (B, N, 3) from charges (B, N), positions and velocities (B, N, 3)."""
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()[:, None]
        j = neighbours(positions, self.num_neighbours)  # (B N, k)
        difference = x[:, None] - x[j]
        edges = torch.cat([difference.square().sum(-1, keepdim=True), q[:, None] * q[j]], dim=-1)
        along = harmonics(difference)
        of_node = along.mean(1) + harmonics(v)
        f = self.embed(torch.cat([q, v.square().sum(-1, keepdim=True), v], dim=-1), of_node)
        for layer in self.layers:
            f = layer(f, j, edges, along, of_node)
        shift = self.head_2(self.gate(self.head_1(f, of_node)), of_node)
        return (x + shift).view_as(positions)


class Layer(nn.Module):
    """A message along every edge, then an update of every node."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        hidden, gated = f"{scalars}x0e+{vectors}x1o", f"{scalars + vectors}x0e+{vectors}x1o"
        self.message_1 = product(f"{hidden}+{hidden}+2x0e", gated)
        self.message_2 = product(hidden, gated)
        self.update_1 = product(f"{hidden}+{hidden}", gated)
        self.update_2 = product(hidden, hidden)
        self.gates = nn.ModuleList(Gate(scalars, vectors) for _ in range(3))

    def forward(self, f: Tensor, j: Tensor, edges: Tensor, along: Tensor, of_node: Tensor) -> Tensor:
        """Features (n, C) of n nodes with neighbours j (n, k) to the same."""
        f_i = f[:, None].expand(*j.shape, -1)
        f_j = f.index_select(0, j.flatten()).view_as(f_i)
        m = self.gates[0](self.message_1(torch.cat([f_i, f_j, edges], dim=-1), along))
        m = self.gates[1](self.message_2(m, along)).sum(1)
        u = self.gates[2](self.update_1(torch.cat([f, m], dim=-1), of_node))
        return f + self.update_2(u, of_node)


class Gate(nn.Module):
    """Scalars, a gate for each vector, vectors: to SiLU of the scalars, and vectors times sigmoids of the gates."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.split = [scalars, vectors, 3 * vectors]
        self.bias = nn.Parameter(torch.zeros(scalars + vectors))

    def forward(self, f: Tensor) -> Tensor:
        """(..., S + 4 V) to (..., S + 3 V)."""
        s, gates, v = f.split(self.split, dim=-1)
        s_bias, gates_bias = self.bias.split(self.split[:2])
        v = v.unflatten(-1, (-1, 3)) * (gates + gates_bias).sigmoid()[..., None]
        return torch.cat([nn.functional.silu(s + s_bias), v.flatten(-2)], dim=-1)


def product(irreps_in: str, irreps_out: str) -> o3.FullyConnectedTensorProduct:
    """The tensor product with the attributes, a weight on every path."""
    return o3.FullyConnectedTensorProduct(irreps_in, ATTRIBUTES, irreps_out)


def harmonics(x: Tensor) -> Tensor:
    """Y(x / |x|), (..., 3) to (..., 4)."""
    return o3.spherical_harmonics(ATTRIBUTES, x, normalize=True, normalization="component")
