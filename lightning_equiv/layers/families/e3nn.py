"""Layers of e3nn, which say their irreps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.layers.layer import Block, Layer, LayerFamily
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.representation import RepresentationLike


@dataclass(frozen=True)
class E3nn(LayerFamily):
    """Linear maps, tensor products, and whatever has `irreps_in` (or `irreps_in1`) and `irreps_out`."""

    def matches(self, module: nn.Module) -> bool:
        return None not in _irreps(module)

    def composite(self, module: nn.Module) -> bool:
        """e3nn's own modules, and classes made from them; but not the networks that come with it."""
        names = [cls.__module__ for cls in type(module).__mro__]
        return any(name.startswith("e3nn.") and not name.startswith("e3nn.nn.models.") for name in names)

    def describe(
        self, name: str, module: nn.Module, given: tuple[RepresentationLike, RepresentationLike] | None = None
    ) -> Layer:
        named = next((irreps for irreps in _irreps(module) if isinstance(irreps, Mapping)), None)
        if named is not None and given is None:
            inner = [path for path, part in module.named_modules() if path and isinstance(part, o3.Linear)][:3]
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has irreps of several tensors by name, {sorted(named)}: "
                "expected a layer from one tensor to another; choose one inside"
                + (f", such as {[f'{name}.{path}' for path in inner]}" if inner else "")
            )
        return super().describe(name, module, given)

    def representations(self, module: nn.Module) -> tuple[RepresentationLike, RepresentationLike]:
        irreps_in, irreps_out = _irreps(module)
        return IrrepsTensor(irreps_in), IrrepsTensor(irreps_out)

    def opening_args(self, layer: Layer, rows: Tensor) -> tuple[Tensor, ...]:
        """A tensor product is called with 1 in the first scalar of its other input: as a map of the first alone."""
        args = super().opening_args(layer, rows)
        if not isinstance(layer.module, o3.TensorProduct):
            return args
        irreps: Any = layer.module.irreps_in2
        other = rows.new_zeros(len(rows), irreps.dim)
        scalar = next(
            (block.start for (_, ir), block in zip(irreps, irreps.slices(), strict=True) if ir.is_scalar()), None
        )
        if scalar is None:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}): its second input, {irreps}, has no scalar, so "
                "that it is no linear map of the first alone: choose a layer that has one (of "
                "ConstraintRelaxation also projection='drop')"
            )
        other[:, scalar] = 1
        return (*args, other)

    def blocks(self, module: nn.Module, name: str, shape: torch.Size) -> list[Block]:
        """Those of the instructions, which lie one behind the other in the flat `weight`.

        The weights of a path between channels one by one ("uvu") are no matrix.
        """
        if name != "weight" or len(shape) != 1 or not isinstance(module, o3.Linear | o3.TensorProduct):
            return super().blocks(module, name, shape)
        blocks, start = [], 0
        for path in module.instructions:
            if isinstance(module, o3.Linear) and path.i_in == -1:  # a bias
                continue
            if isinstance(module, o3.TensorProduct) and not path.has_weight:
                continue
            size = math.prod(path.path_shape)
            if size and (isinstance(module, o3.Linear) or path.connection_mode.endswith("w")):
                blocks.append(Block(start, size // path.path_shape[-1], path.path_shape[-1]))
            start += size
        return blocks


def _irreps(module: nn.Module) -> tuple[Any, Any]:
    irreps_in = getattr(module, "irreps_in1", getattr(module, "irreps_in", None))
    return irreps_in, getattr(module, "irreps_out", None)
