"""Linear maps of vectors with their channels last, (nodes, 3, channels), as in PaiNN, TorchMD-Net and ViSNet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_equiv.layers.layer import LayerFamily, Types, is_of
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.representation import RepresentationLike


@dataclass(frozen=True)
class VectorChannelsLast(LayerFamily):
    """Layers, such as an `nn.Linear` without bias, that take and return (.., components, channels).

    Nothing in such a layer says so: it is named by its type, or by a glob in the dict of `layers`.

    Args:
        of: which modules: a type, a glob on the names of types, or a list of these.
        irreps: of the components: "1o" for vectors, "1o+2e" for all that ViSNet has with lmax = 2.

    Examples:
        >>> VectorChannelsLast(irreps="1o+2e").describe("vec_proj", nn.Linear(16, 48, bias=False)).out_features
        (8, 48)
    """

    of: Types = ()
    irreps: str = "1o"

    def matches(self, module: nn.Module) -> bool:
        return is_of(module, self.of)

    def representations(self, module: nn.Module) -> tuple[RepresentationLike, RepresentationLike]:
        components = IrrepsTensor(self.irreps, dim=-2)
        return components, components
