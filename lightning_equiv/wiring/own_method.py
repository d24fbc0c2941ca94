"""A function in the place of a method of one object, which copies of the object do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _same(value: Any) -> Any:
    return value


class OwnMethod:
    """Calls a function, and looks like it; a copy of the owner (deepcopy, pickle) has its own method in that place.

    Args:
        owner: the object.
        name: of its attribute.
        function: what is called.
        below: the attribute of the instance that it replaces, if there was one.

    Attributes:
        taken_back: it is no longer wanted where it is.
    """

    __slots__ = ("__dict__", "__weakref__", "_function", "_name", "_owner", "below", "taken_back")

    def __init__(self, owner: object, name: str, function: Callable[..., Any], below: list[Any]) -> None:
        self.__dict__ = function.__dict__  # one set of attributes: whoever wraps this copies them
        self._owner, self._name, self._function = owner, name, function
        self.below, self.taken_back = below, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.below:
            return _same, (self.below[0],)
        return getattr, (self._owner, self._name)  # of the copy, which has no attributes of its own yet
