"""Any callable as a representation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

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

    def __repr__(self) -> str:
        derivative = "" if self.derivative is None else f", derivative={_described(self.derivative)}"
        return f"Custom({_described(self.function)}{derivative})"


def _described(value: Any) -> str:
    """A callable by what it is and holds; the same in every process, without addresses."""
    if isinstance(value, partial):
        return f"partial({', '.join(map(_described, (value.func, *value.args, *value.keywords.items())))})"
    if isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value).nonlocals.items()
        held = [f"{name}={v!r}" for name, v in variables if isinstance(v, int | float | str | tuple)]
        line = f"{value.__module__}.{value.__qualname__}:{value.__code__.co_firstlineno}"
        return f"{line}({', '.join(held)})" if held else line
    named = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}" if callable(value) else repr(value)


@register_notation
def _from_callable(value: object) -> Custom | None:
    return Custom(value) if callable(value) else None
