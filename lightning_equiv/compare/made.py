"""What a configuration describes: an object by its class and arguments, made anew in every run."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CellType, CodeType
from typing import Any, TypeAlias

import torch

Spec: TypeAlias = Callable[..., Any] | Mapping[str, Any] | str
"""A factory, a class path, or {"class_path": "package.Class", "init_args": {...}} as in a configuration file."""
_KEYS = {"class_path", "init_args"}
# Where classes lay when results were written that are still to be recognised; the classes are the same.
_MOVED = {"lightning_equiv.networks.": "examples.networks."}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def make(spec: Spec, what: str, **changes: Any) -> Any:
    """Make what a spec describes.

    Args:
        spec: see `Spec`; among its `init_args` may be others, and lists of others.
        what: the setting that it came from, for messages.
        changes: keyword arguments in the place of its own, or beside them.

    Raises:
        ValueError: there is no such class, or it refuses the arguments.

    Examples:
        >>> make({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2}}, "network", out_features=3)
        Linear(in_features=2, out_features=3, bias=True)
    """
    factory, arguments = _taken_apart(spec, what)
    try:
        inspect.signature(factory).bind(**{**arguments, **changes})
    except TypeError as error:
        takes = list(inspect.signature(factory).parameters)
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ValueError(f"{what}: {name} refuses its arguments ({error}); it takes {takes}") from None
    except ValueError:
        pass  # a class without a signature
    return factory(**{**arguments, **changes})


def class_of(spec: Spec, what: str) -> Callable[..., Any]:
    """The class or factory of a spec; see `make`."""
    return _taken_apart(spec, what, nested=False)[0]


def takes(spec: Spec, argument: str, what: str) -> bool:
    """Whether the factory has an argument of this name."""
    try:
        return argument in inspect.signature(class_of(spec, what)).parameters
    except ValueError:
        return False


def is_spec(value: Any) -> bool:
    """Whether a value is {"class_path": ...}."""
    return isinstance(value, Mapping) and "class_path" in value and set(value) <= _KEYS


def _taken_apart(spec: Spec, what: str, nested: bool = True) -> tuple[Callable[..., Any], dict[str, Any]]:
    if isinstance(spec, str):
        return _imported(spec, what), {}
    if is_spec(spec):
        arguments = dict(spec.get("init_args") or {})  # type: ignore[union-attr]
        made = {name: _made(value, f"{what}.{name}") for name, value in arguments.items()} if nested else {}
        return _imported(spec["class_path"], what), made  # type: ignore[index]
    if callable(spec):
        return spec, {}
    raise ValueError(
        f"{what}: expected a function or class that makes it, a class path, or {{class_path: package.Class, init_args: "
        f"{{...}}}}, got {spec!r}"
    )


def _made(value: Any, what: str) -> Any:
    if is_spec(value):
        return make(value, what)
    if isinstance(value, list):
        return [_made(item, what) for item in value]
    return value


def _imported(path: str, what: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module:  # a bare name is one of ours
        for module in ("lightning_equiv", "lightning_equiv.datasets"):
            if found := getattr(importlib.import_module(module), name, None):
                return found
        raise ValueError(f"{what}: expected a class path with its package, such as package.module.{name}, got {name!r}")
    names = path.split(".")
    for number in range(len(names) - 1, 0, -1):
        try:
            there: Any = importlib.import_module(".".join(names[:number]))
        except ModuleNotFoundError as error:
            if error.name is not None and f"{path}.".startswith(f"{error.name}."):
                continue  # a class, perhaps, of which a method is meant
            raise
        for name in names[number:]:
            if not hasattr(there, name):
                raise ValueError(f"{what}: {path} is not there: {there!r} has no {name!r}")
            there = getattr(there, name)
        return there
    raise ValueError(f"{what}: {path} is not there: no package {names[0]!r} can be imported")


def description(value: Any, depth: int = 16) -> Any:
    """What JSON can say of a value, the same in every process: what tells other settings from equal ones.

    Of a function and a class it is the name, of a lambda and a nested function also the code and what they enclose.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth == 0:
        return type(value).__qualname__

    def inner(part: Any) -> Any:
        return description(part, depth - 1)

    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else json.dumps(inner(key)): inner(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(inner(item)) for item in value)
    if isinstance(value, Sequence):
        return [inner(item) for item in value]
    if isinstance(value, partial):
        return [inner(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "bytes": _bytes(value)}
    if isinstance(value, torch.nn.Module):
        return {"class": _name(type(value)), "parts": str(value), "state": inner(dict(value.state_dict()))}
    if isinstance(value, Path):
        return str(value)
    if inspect.ismethod(value):
        return [_name(value), inner(value.__self__)]
    if inspect.isclass(value) or inspect.isroutine(value):
        return [_name(value), *_enclosed(value, inner)] if "<" in value.__qualname__ else _name(value)
    if inspect.ismodule(value) or not hasattr(value, "__dict__"):
        return _ADDRESS.sub("", repr(value.tolist() if hasattr(value, "tolist") else value))
    return {"class": _name(type(value)), **{key: inner(item) for key, item in sorted(value.__dict__.items())}}


def _name(value: Any) -> str:
    module = "__main__" if value.__module__ == "__mp_main__" else value.__module__  # of a script, in its workers
    return f"{module}.{value.__qualname__}"


def _bytes(tensor: torch.Tensor) -> str:
    own = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(own.numpy().tobytes(), digest_size=8).hexdigest()


def _enclosed(function: Any, inner: Callable[[Any], Any]) -> list[Any]:
    """What a nested function does and knows."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    return [_code(code), inner(cells), inner(function.__defaults__), inner(function.__kwdefaults__)]


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def hash_of(value: Any) -> str:
    """Sixteen letters that tell a description from others."""
    text = json.dumps(description(value), sort_keys=True)
    for now, before in _MOVED.items():
        text = text.replace(now, before)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
