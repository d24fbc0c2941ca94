"""Networks from the atoms of a molecule to its energy and the forces on them: one plain, two that know rotations.

All are called as `network(numbers, positions)`, atomic numbers (B, N) and positions (B, N, 3) in Angstrom about the
centre of mass, and return {"energy": (B,) in eV, "forces": (B, N, 3) in eV per Angstrom}; a batch is of one molecule.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.networks.e3nn_message_passing import neighbours
from lightning_equiv.networks.transformer import Block
from lightning_equiv.representations.invariant import Invariant
from lightning_equiv.symmetry.symmetry import Symmetry

MAX_NUMBER = 100  # atomic numbers are below it

SYMMETRY = Symmetry(
    "O(3)",
    inputs={"numbers": Invariant(), "positions": "1o"},
    outputs={"energy": Invariant(), "forces": "1o"},
    batch={"numbers": Invariant(), "positions": "1o", "energy": Invariant(), "forces": "1o"},
)


class MolecularTransformer(nn.Module):
    """An ordinary Transformer, a token an atom; energy and forces are predicted side by side.

    A position enters as plane waves, cos(k . x) and sin(k . x), whose k are learnt: a bond that is 0.05 Angstrom longer
    is hard to see in the coordinates themselves.

    Args:
        num_blocks: Pre-norm encoder blocks.
        num_channels: Width; the feed-forward layers are four times as wide.
        num_heads: Attention heads.
        frequency: Standard deviation of the first k along each axis, in radians per Angstrom.
    """

    def __init__(self, num_blocks: int = 3, num_channels: int = 64, num_heads: int = 4, frequency: float = 2.0) -> None:
        super().__init__()
        self.embed_number = nn.Embedding(MAX_NUMBER, num_channels)
        self.waves = nn.Linear(3, num_channels, bias=False)
        nn.init.normal_(self.waves.weight, std=frequency)
        self.embed_position = nn.Linear(2 * num_channels, num_channels)
        self.blocks = nn.ModuleList(Block(num_channels, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(num_channels)
        self.energy = nn.Linear(num_channels, 1)
        self.forces = nn.Linear(num_channels, 3)

    def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """See the module's docstring."""
        phases = self.waves(positions)
        x = self.embed_number(numbers) + self.embed_position(torch.cat([phases.cos(), phases.sin()], dim=-1))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"energy": self.energy(x.mean(1)).squeeze(-1), "forces": self.forces(x)}


class Gradient(nn.Module):
    """Forces as the negative gradient of an energy, also where gradients are off, as in validation.

    A subclass has `energies(numbers, positions)`, (B,).
    """

    def energies(self, numbers: Tensor, positions: Tensor) -> Tensor:
        """(B,) of each molecule: what a subclass writes."""
        raise NotImplementedError

    def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """See the module's docstring."""
        training = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            # copies, since tensors of inference mode cannot be differentiated
            numbers, x = numbers.clone(), positions.clone()
            x = x if x.requires_grad else x.requires_grad_()
            energy = self.energies(numbers, x)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=training)
        return {"energy": energy if training else energy.detach(), "forces": -gradient}


class SchNetForces(Gradient):
    """torch-geometric's SchNet, which sees distances alone; every pair of atoms interacts.

    Args:
        num_channels: Features of an atom.
        num_interactions: Rounds of continuous-filter convolution.
        num_gaussians: That expand a distance.
        cutoff: Centre of the last Gaussian in Angstrom; farther pairs do not interact.
    """

    def __init__(
        self, num_channels: int = 64, num_interactions: int = 3, num_gaussians: int = 32, cutoff: float = 8.0
    ) -> None:
        super().__init__()
        from torch_geometric.nn.models import SchNet  # which not everybody has who has the other networks

        self.schnet = SchNet(
            num_channels, num_channels, num_interactions, num_gaussians, cutoff, interaction_graph=_all_pairs
        )

    def energies(self, numbers: Tensor, positions: Tensor) -> Tensor:
        """(B,) from (B, N) and (B, N, 3)."""
        b, n = numbers.shape
        batch = torch.arange(b, device=numbers.device).repeat_interleave(n)
        return self.schnet(numbers.flatten(), positions.flatten(0, 1), batch).squeeze(-1)


def _all_pairs(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (2, E) between all atoms of a molecule, and their lengths; all molecules have equally many atoms."""
    n = len(batch) // (int(batch[-1]) + 1)
    j = neighbours(positions.view(-1, n, 3), n)
    i = torch.arange(len(batch), device=batch.device)[:, None].expand_as(j)
    edges = torch.stack([j.flatten(), i.flatten()])
    return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)


class E3nnForces(Gradient):
    """Steerable message passing between all pairs of atoms, as in NequIP and PaiNN with l_max = 1.

    A layer, on scalars s and vectors v of every atom, w being functions of the distance and y = sqrt(3) r / |r| the
    direction from j to i, ``[..]`` joining features:

        s_j, v_j = source(s_j, v_j)
        m_i  = sum_j [w_1 s_j + w_2 v_j . y],  M_i = sum_j [w_3 s_j y + w_4 v_j]
        s_i, v_i = (s_i, v_i) + out(gate(update([s_i, m_i, |M_i|], [v_i, M_i])))

    Every map that mixes features of atoms is an `e3nn.o3.Linear`: ``layers.0.source``, ``.update`` and ``.out``, and
    ``forces``.

    Args:
        num_channels: Scalars of an atom, and as many vectors.
        num_layers: Rounds of message passing.
        num_radial: Gaussians that expand a distance.
        cutoff: Centre of the last Gaussian in Angstrom.
        conservative: Forces are the gradient of the energy; otherwise they are predicted beside it, as vectors.
    """

    centres: Tensor

    def __init__(
        self,
        num_channels: int = 32,
        num_layers: int = 2,
        *,
        num_radial: int = 20,
        cutoff: float = 6.0,
        conservative: bool = False,
    ) -> None:
        super().__init__()
        self.num_channels, self.conservative = num_channels, conservative
        self.register_buffer("centres", torch.linspace(0, cutoff, num_radial), persistent=False)
        self.width = cutoff / (num_radial - 1)
        self.embed = nn.Embedding(MAX_NUMBER, num_channels)
        self.layers = nn.ModuleList(SteerableLayer(num_channels, num_radial) for _ in range(num_layers))
        self.energy = nn.Sequential(nn.Linear(num_channels, num_channels), nn.SiLU(), nn.Linear(num_channels, 1))
        self.forces = None if conservative else o3.Linear(f"{num_channels}x1o", "1x1o")

    def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """See the module's docstring."""
        if self.forces is None:
            return super().forward(numbers, positions)
        s, v = self.features(numbers, positions)
        forces = self.forces(v.flatten(-2)).view_as(positions)
        return {"energy": self.energy(s).view(numbers.shape).sum(1), "forces": forces}

    def energies(self, numbers: Tensor, positions: Tensor) -> Tensor:
        """(B,) from (B, N) and (B, N, 3)."""
        s, _ = self.features(numbers, positions)
        return self.energy(s).view(numbers.shape).sum(1)

    def features(self, numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (B N, C) and vectors (B N, C, 3)."""
        x = positions.flatten(0, 1)
        j = neighbours(positions, numbers.shape[1])
        difference = x[:, None] - x[j]
        distance = difference.norm(dim=-1, keepdim=True)
        edges = torch.exp(-((distance - self.centres) / self.width).square())
        towards = math.sqrt(3) * difference / distance

        s = self.embed(numbers.flatten())
        v = s.new_zeros(*s.shape, 3)
        for layer in self.layers:
            s, v = layer(s, v, j, edges, towards)
        return s, v


class SteerableLayer(nn.Module):
    """A message along every edge, then an update of every atom."""

    def __init__(self, num_channels: int, num_radial: int) -> None:
        super().__init__()
        c = self.num_channels = num_channels
        self.filters = nn.Sequential(nn.Linear(num_radial, c), nn.SiLU(), nn.Linear(c, 4 * c))
        self.source = o3.Linear(f"{c}x0e+{c}x1o", f"{c}x0e+{c}x1o", biases=True)
        self.update = o3.Linear(f"{3 * c}x0e+{2 * c}x1o", f"{2 * c}x0e+{c}x1o", biases=True)
        self.out = o3.Linear(f"{c}x0e+{c}x1o", f"{c}x0e+{c}x1o", biases=True)

    def forward(self, s: Tensor, v: Tensor, j: Tensor, edges: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (n, C) and vectors (n, C, 3) to the same."""
        source = self.source(torch.cat([s, v.flatten(-2)], -1))
        s_j, v_j = self.split(source.index_select(0, j.flatten()).unflatten(0, j.shape))
        w = self.filters(edges).chunk(4, dim=-1)
        y = towards[..., None, :]  # (n, k, 1, 3)
        m_s = (w[0] * s_j + w[1] * (v_j * y).sum(-1)).sum(1)
        m_v = ((w[2] * s_j)[..., None] * y + w[3][..., None] * v_j).sum(1)
        m_s, m_v = m_s / math.sqrt(j.shape[1]), m_v / math.sqrt(j.shape[1])

        lengths = (m_v.square().sum(-1) + 1e-6).sqrt()
        u = self.update(torch.cat([s, m_s, lengths, v.flatten(-2), m_v.flatten(-2)], -1))
        scalars, gates, vectors = u.split([self.num_channels, self.num_channels, 3 * self.num_channels], dim=-1)
        vectors = gates.sigmoid()[..., None] * vectors.unflatten(-1, (-1, 3))
        u_s, u_v = self.split(self.out(torch.cat([nn.functional.silu(scalars), vectors.flatten(-2)], -1)))
        return s + u_s, v + u_v

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (..., C) and vectors (..., C, 3)."""
        return h[..., : self.num_channels], h[..., self.num_channels :].unflatten(-1, (-1, 3))
