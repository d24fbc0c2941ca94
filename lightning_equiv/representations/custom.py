"""Any callable as a representation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_equiv.groups.group import AlgebraElement, GroupElement
from lightning_equiv.representations.representation import Representation, register_notation


@dataclass(frozen=True)
class Custom(Representation):
    """Any callable (g, x) -> x' as a representation.

    Args:
        function: the action; it must keep shape, device and dtype.
        derivative: (a, x) -> d/dt at 0, for Lie derivatives.
    """

    function: Callable[[GroupElement, Tensor], Tensor]
    derivative: Callable[[AlgebraElement, Tensor], Tensor] | None = None
    written = False

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        moved = self.function(g, x)
        if moved.shape != x.shape or moved.dtype != x.dtype:
            raise ValueError(
                f"{self.function!r} changed a tensor of {tuple(x.shape)} {x.dtype} to {tuple(moved.shape)} "
                f"{moved.dtype}: expected an action that keeps shape and dtype"
            )
        return moved

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return super().infinitesimal(a, x) if self.derivative is None else self.derivative(a, x)


@register_notation
def _from_callable(value: object) -> Custom | None:
    return Custom(value) if callable(value) else None
