"""What stands in a graph for a tensor that the symmetry does not name: it may lie there as long as nobody reads it."""

from __future__ import annotations

from typing import Any, NoReturn


class Unread:
    """In place of a label, say, that a PyG graph carries. A network that uses it is told to name it."""

    def __init__(self, message: str) -> None:
        self._message = message

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(self._message)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copies and the like
            raise AttributeError(name)
        self._refuse()

    def __getitem__(self, key: Any) -> Unread:
        return self  # a part of a graph, which may lie there, too

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        for value in _flat((args, kwargs or {})):
            if isinstance(value, Unread):
                value._refuse()
        raise TypeError(f"{func} was called with a tensor that the symmetry does not name")

    __len__ = __iter__ = __bool__ = __float__ = __int__ = __index__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = __floordiv__ = __mod__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __array__ = _refuse
    __hash__ = object.__hash__


def _flat(value: Any) -> list[Any]:
    """What a torch function was called with."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else None
    return [value] if held is None else [leaf for item in held for leaf in _flat(item)]
