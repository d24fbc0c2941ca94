"""Steerable message passing on particles with e3nn's linear maps: it commutes with O(3), translations, permutations."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.datasets.neighbours import knn_graph

START = 0.1  # scale of the untrained steps; see E3nnMessagePassing


class E3nnMessagePassing(nn.Module):
    """From charges, positions and velocities to the final positions, in the manner of SEGNN with l_max = 1.

    A layer, j running over the neighbours of i, ``[..]`` joining features:

        m_ij = gate(message_out(gate(message([h_i, h_j, edge_ij]; Y(x_i - x_j))); Y(x_i - x_j)))
        h_i  = h_i + out(gate(update([h_i, sum_j m_ij / sqrt(k)]; Y(v_i))))
        x_i  = x_i + shift(h_i; Y(v_i))

    Unlike in SEGNN the particles move from layer to layer, as an integrator would have it: edges are those of the
    particles where they are. On charged particles the test error of three layers after 500 steps fell from 0.055 to
    between 0.027 and 0.040 in three runs, and to 0.022 and 0.024 with untrained steps `START` times as large.

    ``linear(f; Y)`` is the fully connected tensor product of f with the spherical harmonics Y = (1, Y_1), factored so
    that its weights are one equivariant linear map: scalars f_0 and dot products f_1 . Y_1 go in beside vectors f_1,
    and some of the scalars that come out are multiplied by Y_1. It takes fewer operations, and reaches (f_1 . Y_1) Y_1
    besides.

    Every map with weights is an `e3nn.o3.Linear`, with `irreps_in` and `irreps_out`: ``embed``, and in each layer
    ``layers.0.message``, ``.message_out``, ``.update``, ``.out`` and ``.shift``.

    Positions enter as differences only. The graph is complete as long as there are at most ``num_neighbours`` others.

    Args:
        hidden: Scalars and vectors of each particle, "Sx0e+Vx1o".
        num_layers: Rounds of message passing.
        num_neighbours: k, the nearest particles that send messages.
        num_radial: Gaussians that expand a distance.
        cutoff: Centre of the last Gaussian, in the units of the positions.

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

    centres: Tensor

    def __init__(
        self,
        hidden: str = "16x0e+16x1o",
        num_layers: int = 4,
        *,
        num_neighbours: int = 7,
        num_radial: int = 8,
        cutoff: float = 3.0,
    ) -> None:
        super().__init__()
        irreps = o3.Irreps(hidden)
        scalars, vectors = irreps.count("0e"), irreps.count("1o")
        if irreps.num_irreps != scalars + vectors or not scalars or not vectors:
            raise ValueError(f'hidden must be made of 0e and 1o, such as "16x0e+16x1o", got "{hidden}".')
        self.num_neighbours = num_neighbours
        self.register_buffer("centres", torch.linspace(0, cutoff, num_radial), persistent=False)
        self.width = cutoff / (num_radial - 1)
        self.num_scalars = scalars
        self.embed = o3.Linear("2x0e+1x1o", f"{scalars}x0e+{vectors}x1o", biases=True)
        self.layers = nn.ModuleList(Layer(scalars, vectors, 2 * num_radial) for _ in range(num_layers))

    def forward(self, charges: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Final positions (B, N, 3) from charges (B, N), positions and velocities (B, N, 3)."""
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()[:, None]
        j = neighbours(positions, self.num_neighbours)  # (B N, k)

        products = q[:, None] * q[j]
        h = self.embed(torch.cat([q, v.square().sum(-1, keepdim=True), v], dim=-1))
        features = h[:, : self.num_scalars], h[:, self.num_scalars :].unflatten(-1, (-1, 3))
        for layer in self.layers:
            edges, towards = self.edges(x[:, None] - x[j], products)
            *features, shift = layer(*features, j, edges, towards, math.sqrt(3) * v)
            x = x + shift
        return x.view_as(positions)

    def edges(self, difference: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """What the distance is, alone and times the product of the charges; the direction, Y_1 = sqrt(3) r / |r|."""
        distance = (difference.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        radial = torch.exp(-((distance - self.centres) / self.width).square())
        return torch.cat([radial, products * radial], dim=-1), math.sqrt(3) * difference / distance


class Layer(nn.Module):
    """A message along every edge, then an update of every node."""

    def __init__(self, scalars: int, vectors: int, edge_scalars: int) -> None:
        super().__init__()
        self.split = [scalars, vectors, vectors, 3 * vectors]
        gated = f"{scalars + 2 * vectors}x0e+{vectors}x1o"  # scalars, gates, lengths along Y_1; vectors
        self.message = linear(2 * scalars + edge_scalars, 2 * vectors, gated)
        self.message_out = linear(scalars, vectors, gated)
        self.update = linear(2 * scalars, 2 * vectors, gated)
        self.out = o3.Linear(f"{scalars}x0e+{vectors}x1o", f"{scalars}x0e+{vectors}x1o", biases=True)
        self.shift = linear(scalars, vectors, "1x0e+1x1o")
        with torch.no_grad():
            self.shift.weight.mul_(START)

    def forward(
        self, s: Tensor, v: Tensor, j: Tensor, edges: Tensor, towards: Tensor, along: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars (n, S) and vectors (n, V, 3) to the same, and how far the particles move (n, 3)."""
        n, k = j.shape
        s_i, v_i = s[:, None].expand(n, k, -1), v[:, None].expand(n, k, -1, -1)
        s_j, v_j = (f.index_select(0, j.flatten()).unflatten(0, (n, k)) for f in (s, v))
        m = self.gated(self.message, torch.cat([s_i, s_j, edges], -1), torch.cat([v_i, v_j], -2), towards)
        m_s, m_v = (f.sum(1) / math.sqrt(k) for f in self.gated(self.message_out, *m, towards))
        u_s, u_v = self.gated(self.update, torch.cat([s, m_s], -1), torch.cat([v, m_v], -2), along)
        u = self.out(torch.cat([u_s, u_v.flatten(-2)], -1))
        s, v = s + u[:, : self.split[0]], v + u[:, self.split[0] :].view_as(v)
        time, shift = steered(self.shift, s, v, along).split([1, 3], dim=-1)
        return s, v, shift + time * along

    def gated(self, linear: o3.Linear, s: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """gate(linear(f; Y)) of f = (s, v), with Y_1 = y (..., 3)."""
        s, gates, lengths, v = steered(linear, s, v, y).split(self.split, dim=-1)
        v = v.unflatten(-1, (-1, 3)) + lengths[..., None] * y[..., None, :]
        return nn.functional.silu(s), gates.sigmoid()[..., None] * v


def linear(scalars: int, vectors: int, irreps_out: str) -> o3.Linear:
    """The weights of a tensor product with (1, Y_1): scalars, vectors . Y_1 and vectors go in."""
    return o3.Linear(f"{scalars + vectors}x0e+{vectors}x1o", irreps_out, biases=True)


def steered(linear: o3.Linear, s: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """The same map applied to (s, v . y, v)."""
    dots = (v @ y[..., None]).squeeze(-1)
    return linear(torch.cat([s, dots, v.flatten(-2)], dim=-1))


def neighbours(positions: Tensor, k: int) -> Tensor:
    """(B N, min(k, N - 1)) rows of the others that are nearest, among those of the same sample."""
    b, n, _ = positions.shape
    first = torch.arange(0, b * n, n, device=positions.device)
    if n - 1 <= k:
        i = torch.arange(n, device=positions.device)
        others = (i[:, None] + i[1:]) % n
        return (first[:, None, None] + others).flatten(0, 1)
    batch = (first // n).repeat_interleave(n)
    return knn_graph(positions.flatten(0, 1), k, batch)[0].view(b * n, k)
