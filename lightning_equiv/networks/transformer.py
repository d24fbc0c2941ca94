"""An ordinary Transformer on particles: it knows permutations, but no rotation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ParticleTransformer(nn.Module):
    """From masses, positions and velocities to the final positions; a token a particle, predicts the displacement.

    Args:
        num_blocks: Pre-norm encoder blocks.
        num_channels: Width; the feed-forward layers are four times as wide.
        num_heads: Attention heads.
    """

    def __init__(self, num_blocks: int = 4, num_channels: int = 128, num_heads: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(7, num_channels)
        self.blocks = nn.ModuleList(Block(num_channels, num_heads) for _ in range(num_blocks))
        self.head = nn.Sequential(nn.LayerNorm(num_channels), nn.Linear(num_channels, 3))

    def forward(self, masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Final positions (B, N, 3) from masses (B, N), positions and velocities (B, N, 3)."""
        x = self.embed(torch.cat([masses[..., None], positions, velocities], dim=-1))
        for block in self.blocks:
            x = block(x)
        return positions + self.head(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(num_channels), nn.LayerNorm(num_channels)
        self.to_qkv = nn.Linear(num_channels, 3 * num_channels)
        self.to_out = nn.Linear(num_channels, num_channels)
        self.mlp = nn.Sequential(
            nn.Linear(num_channels, 4 * num_channels), nn.GELU(), nn.Linear(4 * num_channels, num_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, channels) to the same."""
        qkv = self.to_qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, channels / heads)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.to_out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm_mlp(x))
