"""Put a function in the place of a method of one object, and give the method back."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

_BELOW = "_lightning_equiv_below"  # on a function that was taken back: itself, and the attribute that it replaced


def override(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """`owner.name` is `function` from now on; the function returned takes that back, in any order with others.

    Where somebody has put another in its place since, theirs stays.
    """
    attributes = owner.__dict__
    below = [attributes[name]] if name in attributes else []
    attributes[name] = function

    def restore() -> None:
        setattr(function, _BELOW, (function, below))
        while (lower := _taken_back(attributes.get(name))) is not None:
            del attributes[name]
            if lower:
                attributes[name] = lower[0]

    return restore


def _taken_back(function: Any) -> list[Any] | None:
    """What lies below a function that was taken back; None for any other."""
    itself, below = getattr(function, _BELOW, (None, None)) if isinstance(function, FunctionType) else (None, None)
    return below if itself is function else None  # functools.wraps copies the mark
