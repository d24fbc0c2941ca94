"""Layers that say nothing of a symmetry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lightning_equiv.layers.layer import Block, Layer, LayerFamily, Matrix, wrong_size
from lightning_equiv.representations.representation import Representation, RepresentationLike


@dataclass(frozen=True)
class Plain(LayerFamily):
    """Any module, with its features in the last dimension or where the representations that are given have them."""

    def matches(self, module: nn.Module) -> bool:
        return True

    def describe(
        self, name: str, module: nn.Module, given: tuple[RepresentationLike, RepresentationLike] | None = None
    ) -> Layer:
        layer = super().describe(name, module, given)
        if isinstance(module, nn.Linear) and layer.dims == (-1,):
            sides = ("in", layer.in_features, module.in_features), ("out", layer.out_features, module.out_features)
            for side, declared, size in sides:
                if declared != (size,):
                    raise wrong_size(layer, side, declared, (size,))
        return layer

    def feature_dims(self, module: nn.Module, representation: Representation) -> tuple[int, ...]:
        """Of a linear map they are where the representation acts, and the last dimension, which it mixes."""
        if not isinstance(module, nn.Linear):
            return representation.feature_dims
        dims = representation.acts_on
        return dims if -1 in dims else (*dims, -1)

    def blocks(self, module: nn.Module, name: str, shape: torch.Size) -> list[Block]:
        """The rows of an embedding are vectors, each by itself."""
        return [] if isinstance(module, nn.Embedding | nn.EmbeddingBag) else super().blocks(module, name, shape)

    def matrix(self, layer: Layer) -> Matrix | None:
        """The four maps of torch's attention, to queries, keys, values and the output, are stacked.

        A head sees embed_dim / num_heads numbers in a row: the representation has to be one of each head, one behind
        the other.
        """
        module = layer.module
        if not isinstance(module, nn.MultiheadAttention):
            return super().matrix(layer)
        if module.in_proj_weight is None or module.bias_k is not None:
            raise ValueError(
                f"layer {layer.name!r} (MultiheadAttention): expected queries, keys and values of one size, and no "
                "constants among the keys, to be taken as matrices: leave kdim, vdim and add_bias_kv out"
            )
        A = torch.cat([module.in_proj_weight.unflatten(0, (3, -1)), module.out_proj.weight[None]])
        if module.in_proj_bias is None:
            return A, None
        return A, torch.cat([module.in_proj_bias.unflatten(0, (3, -1)), module.out_proj.bias[None]])
