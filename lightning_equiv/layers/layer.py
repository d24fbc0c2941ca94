"""A chosen layer and its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lightning_equiv.representations.representation import Representation

if TYPE_CHECKING:
    from lightning_equiv.layers.families.family import LayerFamily


@dataclass(frozen=True, eq=False)
class Layer:
    """A chosen layer.

    Its features are one dimension of a tensor, or two neighbouring ones such as the channels and components of vector
    neurons. `inputs` and `outputs` move a tensor (rows, *features).

    Attributes:
        name: dotted name in the model.
        module: the layer.
        inputs: how an element moves its (first) input; None where that is not known.
        outputs: how an element moves its output; None where that is not known.
        dims: the dimensions that hold the features: (-1,) for most, (1, 2) for vector neurons (batch, channels, 3, ..),
            (1,) for convolutions, whose features are all dimensions between the batch and the grid.
        in_features: shape of the input's features; None where only a call will tell.
        out_features: shape of the output's features.
        family: what knows its tensors and makes its branch.
    """

    name: str
    module: nn.Module
    inputs: Representation | None
    outputs: Representation | None
    dims: tuple[int, ...]
    in_features: tuple[int, ...] | None
    out_features: tuple[int, ...] | None
    family: LayerFamily

    @property
    def grid(self) -> int:
        """Dimensions of the grid that a convolution slides over, the last of its tensors; 0 for any other layer."""
        return self.family.grid(self.module)
