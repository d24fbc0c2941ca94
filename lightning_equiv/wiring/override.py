"""Put a function in the place of a method of one object, and give the method back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_equiv.wiring.own_method import OwnMethod


def override(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """`owner.name` is `function` from now on; the function returned takes that back, in any order with others.

    Where somebody has put another in its place since, theirs stays. Copies of the owner have the owner's own method.
    """
    attributes = owner.__dict__
    below = [attributes[name]] if name in attributes else []
    own = attributes[name] = OwnMethod(owner, name, function, below)

    def restore() -> None:
        own.taken_back = True
        while isinstance(top := attributes.get(name), OwnMethod) and top.taken_back:
            del attributes[name]
            if top.below:
                attributes[name] = top.below[0]

    return restore
