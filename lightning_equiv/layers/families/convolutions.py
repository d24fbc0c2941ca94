"""Convolutions on a grid: torch's, and group convolutions on feature maps with orientations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_equiv.layers.layer import Block, Layer, LayerFamily, Matrix, flat_sizes
from lightning_equiv.representations.representation import Representation

_FORWARD = nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward


class ConvolutionBranch(nn.Module):
    """n(x) = W * x, an ordinary convolution of the geometry of the layer beside it."""

    def __init__(self, layer: Layer, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        module: Any = layer.module
        kernel = getattr(module, "kernel_size", None) or tuple(module.weight.shape[-layer.grid :])
        kernel = (kernel,) * layer.grid if isinstance(kernel, int) else kernel
        self.options = {
            name: getattr(module, name) for name in ("stride", "padding", "dilation") if hasattr(module, name)
        }
        if not self.options:
            self.options = {"padding": "same"}
        fan_in = in_features * math.prod(kernel)
        self.weight = nn.Parameter(torch.randn(out_features, in_features, *kernel) * scale / math.sqrt(fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *grid) to (batch, out, *grid)."""
        convolution = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[x.ndim - 3]
        return convolution(x, self.weight, **self.options)


@dataclass(frozen=True)
class Convolutions(LayerFamily):
    """Modules with a `kernel_size`, or with a weight (.., k, k); their tensors are (batch, *features, *grid)."""

    def matches(self, module: nn.Module) -> bool:
        return self.grid(module) > 0

    def grid(self, module: nn.Module) -> int:
        kernel, weight = getattr(module, "kernel_size", None), getattr(module, "weight", None)
        if isinstance(kernel, tuple):
            return len(kernel)
        return 2 if kernel is not None or (isinstance(weight, Tensor) and weight.ndim >= 4) else 0

    def channels(self, module: nn.Module) -> tuple[int | None, int | None]:
        """Of torch's convolutions; those of a group convolution come with orientations, which only a call shows."""
        return super().channels(module) if isinstance(module, _ConvNd) else (None, None)

    def blocks(self, module: nn.Module, name: str, shape: torch.Size) -> list[Block]:
        """A kernel is one matrix: its first dimension against all others."""
        return [Block(0, shape[0], math.prod(shape[1:]))] if len(shape) > 2 else super().blocks(module, name, shape)

    def feature_dims(self, module: nn.Module, representation: Representation) -> tuple[int, ...]:
        return (1,)

    def features(self, layer: Layer, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[0 if self._single(layer, x) else 1 : -layer.grid])

    def branch(self, layer: Layer, kind: str, scale: float) -> nn.Module:
        """An ordinary convolution, of either kind."""
        return ConvolutionBranch(layer, *flat_sizes(layer), scale)

    def rows(self, layer: Layer, x: Tensor) -> Tensor:
        """(batch, *features, *grid) as (batch, features, *grid)."""
        return (x[None] if self._single(layer, x) else x).flatten(1, -1 - layer.grid)

    def unrows(self, layer: Layer, rows: Tensor, output: Tensor) -> Tensor:
        assert layer.out_features is not None
        features = rows.unflatten(1, layer.out_features)
        return features[0] if self._single(layer, output) else features

    def matrix(self, layer: Layer) -> Matrix | None:
        """The kernel, (out * places, in), of torch's own convolutions."""
        module: Any = layer.module
        if type(module).forward not in _FORWARD:
            return None
        if module.groups > 1:
            raise ValueError(
                f"layer {layer.name!r} ({type(module).__name__}): expected a convolution with groups=1, to be taken as "
                f"a matrix from all its channels to all, got groups={module.groups}"
            )
        return module.weight.movedim(1, -1).flatten(0, -2), module.bias

    def opening_args(self, layer: Layer, rows: Tensor) -> tuple[Tensor, ...]:
        """One pixel that is not 0, in the middle of a grid that its kernel's reach fits on to every side."""
        assert layer.in_features is not None
        reach = self._reach(layer)
        x = rows.new_zeros(len(rows), *layer.in_features, *(2 * r - 1 for r in reach))
        middle: tuple[Any, ...] = (..., *(r - 1 for r in reach))
        x[middle] = rows.unflatten(1, layer.in_features)
        return (x,)

    def opened_rows(self, layer: Layer, tensor: Tensor) -> Tensor:
        """The features at the places that the pixel reaches."""
        for dim, r in zip(range(-layer.grid, 0), self._reach(layer), strict=True):
            tensor = tensor.narrow(dim, (tensor.shape[dim] - r) // 2, r)
        return tensor.flatten(1)

    def opened_shapes(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The features of one pixel, and those of the places that it reaches."""
        inputs, outputs = super().opened_shapes(layer)
        return (*inputs, *[1] * layer.grid), (*outputs, *self._reach(layer))

    def _reach(self, layer: Layer) -> tuple[int, ...]:
        """The sides of the kernel, with the gaps of a dilated one."""
        module: Any = layer.module
        options: list[tuple[int, ...]] = []
        for name in ("kernel_size", "stride", "dilation"):
            value = getattr(module, name, tuple(module.weight.shape[-layer.grid :]) if name == "kernel_size" else 1)
            options.append((value,) * layer.grid if isinstance(value, int) else tuple(value))
        kernel, stride, dilation = options
        if {*stride} != {1} or any(k % 2 == 0 for k in kernel):
            raise ValueError(
                f"layer {layer.name!r} ({type(module).__name__}): expected a convolution with stride 1 and a kernel of "
                f"odd size, to be opened as a matrix, got stride {stride} and kernel {kernel}"
            )
        return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))

    def _single(self, layer: Layer, x: Tensor) -> bool:
        """Whether this is one input without a batch, as torch's convolutions take it."""
        return isinstance(layer.module, _ConvNd) and x.ndim == 1 + layer.grid
