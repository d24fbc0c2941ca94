"""Put a function in the place of a method of one object, and give the method back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def override(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """`owner.name` is `function` from now on; the function returned takes that back.

    Where somebody has put another in its place since, theirs stays.
    """
    attributes = owner.__dict__
    had, own = name in attributes, attributes.get(name)
    attributes[name] = function

    def restore() -> None:
        if attributes.get(name) is not function:
            return
        if had:
            attributes[name] = own
        else:
            del attributes[name]

    return restore
