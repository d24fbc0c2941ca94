"""A convolutional network that a quarter turn of the image leaves unchanged, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class C4Lift(nn.Module):
    """Correlates an image with a filter in its four orientations: (B, C_in, H, W) to (B, C_out, 4, H, W).

    A quarter turn of the image turns the feature maps and moves each to the next orientation.

    Args:
        in_channels: C_in.
        out_channels: C_out; the weight is (C_out, C_in, k, k).
        kernel_size: k, odd; the borders are padded with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, 4, H, W)."""
        filters = torch.stack([self.weight.rot90(r, (-2, -1)) for r in range(4)], dim=1)
        y = nn.functional.conv2d(x, filters.flatten(0, 1), self.bias.repeat_interleave(4), padding="same")
        return y.unflatten(1, (-1, 4))


class C4Conv(nn.Module):
    """Correlates over positions and orientations: (B, C_in, 4, H, W) to (B, C_out, 4, H, W).

        y[o, r] = sum_{c, s} rot90^r(W[o, c, s - r]) * x[c, s]

    Args:
        in_channels: C_in.
        out_channels: C_out; the weight is (C_out, C_in, 4, k, k).
        kernel_size: k, odd; the borders are padded with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 4, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, 4, H, W) to (B, C_out, 4, H, W)."""
        turned = [self.weight.rot90(r, (-2, -1)).roll(r, dims=2) for r in range(4)]
        filters = torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)  # (C_out 4, C_in 4, k, k)
        y = nn.functional.conv2d(x.flatten(1, 2), filters, self.bias.repeat_interleave(4), padding="same")
        return y.unflatten(1, (-1, 4))


class C4CNN(nn.Module):
    """From square images to class logits that the group C4 leaves unchanged.

    One lifting and two group convolutions with batch normalisation over orientations and positions; pooling between
    them; the mean over positions and the maximum over orientations are classified.

    Args:
        num_classes: Length of the logits.
        channels: Feature maps of each orientation.
        in_channels: Channels of the image.

    Raises:
        ValueError: On a call, when the image is not square with an even side.

    Reference:
        @inproceedings{cohen2016group,
          title={Group Equivariant Convolutional Networks},
          author={Cohen, Taco and Welling, Max},
          booktitle={International Conference on Machine Learning},
          year={2016}
        }
    """

    def __init__(self, num_classes: int = 10, channels: int = 16, *, in_channels: int = 1) -> None:
        super().__init__()
        self.lift = C4Lift(in_channels, channels)
        self.convs = nn.ModuleList([C4Conv(channels, channels), C4Conv(channels, channels)])
        self.norms = nn.ModuleList(nn.BatchNorm3d(channels) for _ in range(3))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, H) to (B, num_classes)."""
        height, width = images.shape[-2:]
        if height != width or height % 2:  # otherwise the pooling windows do not turn with the image
            raise ValueError(f"images must be square with an even side, got {height} x {width}.")
        x = self.norms[0](self.lift(images)).relu()
        x = self.norms[1](self.convs[0](x)).relu()
        x = nn.functional.avg_pool3d(x, (1, 2, 2))
        x = self.norms[2](self.convs[1](x)).relu()
        return self.head(x.mean((-2, -1)).amax(-1))
