"""A classifier of images whose layers are assembled from a student that was taught a symmetry, or from its teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_equiv.layers.cloned_layer import ClonedLayer


class LayeredNetwork(nn.Module):
    """From images to the logits of ten digits: two layers of one student, a pool over orientations and places, a head.

    Args:
        student: what each layer is assembled from; a teacher makes the strictly equivariant network.
        channels: of both layers.
    """

    def __init__(self, student: nn.Module, channels: int) -> None:
        super().__init__()
        self.student = student
        self.layers = nn.ModuleList([ClonedLayer(student, 1, channels), ClonedLayer(student, channels, channels)])
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in self.layers)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, H) to (B, 10)."""
        x = images
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = layer(x)
            y = norm(y.flatten(2)).relu().view_as(y)
            x = y.amax(2) if y.ndim == 5 else y  # (B, C, H, H)
        return self.head(torch.cat([x.mean((-2, -1)), x.amax((-2, -1))], dim=-1))


def mlp(pixels: int, width: int = 512) -> nn.Module:
    """An ordinary network of about as many weights, from images of so many pixels to the logits of ten digits."""
    layers = [nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Flatten(), *layers)
