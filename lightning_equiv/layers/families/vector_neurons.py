"""Vector neurons: layers on vectors with their channels in front, (batch, channels, 3, ..)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_equiv.layers.layer import LayerFamily, Types, is_of
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.representation import RepresentationLike


@dataclass(frozen=True)
class VectorNeurons(LayerFamily):
    """Layers that take and return vectors (batch, channels, 3, ..).

    Args:
        of: which modules: a type, a glob on the names of types (`Vec*Linear`), or a list of these. None takes those
            whose type has a name that begins with VN, or that have the published layers' `map_to_feat`, where they say
            their channels.

    Examples:
        >>> VectorNeurons(of="VectorLinear").matches(nn.Linear(3, 3))
        False
    """

    of: Types | None = None

    def matches(self, module: nn.Module) -> bool:
        if self.of is not None:
            return is_of(module, self.of)
        known = type(module).__name__.startswith("VN") or isinstance(getattr(module, "map_to_feat", None), nn.Linear)
        return known and None not in self.channels(module)

    def composite(self, module: nn.Module) -> bool:
        """The published layers are linear maps of channels that they moved to the end."""
        return isinstance(getattr(module, "map_to_feat", None), nn.Linear)

    def representations(self, module: nn.Module) -> tuple[RepresentationLike, RepresentationLike]:
        vectors = IrrepsTensor("1o", dim=2)
        return vectors, vectors

    def channels(self, module: nn.Module) -> tuple[int | None, int | None]:
        """Of the module, or of the linear map inside the published layers."""
        inner = getattr(module, "map_to_feat", None)
        return super().channels(inner if isinstance(inner, nn.Linear) else module)
