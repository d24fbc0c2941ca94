"""Put a function in the place of a method of one object, and give the method back."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

# functions that were taken back, each with the attribute it replaced
_taken_back: WeakKeyDictionary[Callable[..., Any], list[Any]] = WeakKeyDictionary()


def override(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """`owner.name` is `function` from now on; the function returned takes that back, in any order with others.

    Where somebody has put another in its place since, theirs stays.
    """
    attributes = owner.__dict__
    below = [attributes[name]] if name in attributes else []
    attributes[name] = function

    def restore() -> None:
        _taken_back[function] = below
        while isinstance(attributes.get(name), FunctionType) and attributes[name] in _taken_back:
            lower = _taken_back[attributes.pop(name)]
            if lower:
                attributes[name] = lower[0]

    return restore
