"""Convolutions of escnn, whose field types say how a group element moves their fields; escnn is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.layers.families.convolutions import Convolutions
from lightning_equiv.representations.action import apply_matrix
from lightning_equiv.representations.image import Image, check_plane
from lightning_equiv.representations.representation import Representation, RepresentationLike


@dataclass(frozen=True)
class EscnnFields(Representation):
    """Fields on a square grid, (g F)(p) = rho(g) F(R^-1 p) with rho from an `escnn.nn.FieldType` of a finite group.

    An element is found in escnn's group by its action on the plane, so no numbering of elements is assumed.

    Args:
        field_type: the `in_type` or `out_type` of an escnn module.
    """

    field_type: Any
    acts_through = "matrix"
    written = False

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return apply_matrix(self._fibre(g).to(x.device), Image()(g, x), dim=1)

    def _fibre(self, g: GroupElement) -> Tensor:
        """(n, channels, channels) matrices rho(g)."""
        space = self.field_type.gspace
        elements = list(space.fibergroup.elements)
        plane = torch.stack([torch.as_tensor(space.basespace_action(e), dtype=torch.float64) for e in elements])
        distance, nearest = (g.matrix.cpu()[:, None] - plane).abs().amax((-2, -1)).min(dim=1)
        if bool((distance > 1e-5).any()):
            raise ValueError(f"{self.field_type} cannot be moved by every element of {g.group}: name a subgroup of it")
        fibre = [torch.as_tensor(self.field_type.representation(elements[i])) for i in nearest.tolist()]
        return torch.stack(fibre)

    def feature_shape(self, channels: int | None, dims: tuple[int, ...]) -> tuple[int, ...]:
        return (int(self.field_type.size),)

    def check_group(self, group: Group) -> None:
        check_plane(self, group)
        if group.dim or self.field_type.gspace.fibergroup.order() < 1:
            raise ValueError(
                f"{self.field_type} is moved by elements of finite groups only, got {group}: name a finite subgroup, "
                "such as 'C4', of a network that is built on a finite group"
            )
        self._fibre(group.generators())


@dataclass(frozen=True)
class Escnn(Convolutions):
    """Convolutions with an `in_type` and an `out_type`, from one geometric tensor to another."""

    def matches(self, module: nn.Module) -> bool:
        types = getattr(module, "in_type", None), getattr(module, "out_type", None)
        return None not in types and super().matches(module)

    def representations(self, module: nn.Module) -> tuple[RepresentationLike, RepresentationLike]:
        fields: Any = module
        return EscnnFields(fields.in_type), EscnnFields(fields.out_type)

    def tensor(self, value: Any) -> Tensor | None:
        return super().tensor(getattr(value, "tensor", value))

    def wrapped(self, tensor: Tensor, like: Any) -> Any:
        return tensor if isinstance(like, Tensor) else type(like)(tensor, like.type)
