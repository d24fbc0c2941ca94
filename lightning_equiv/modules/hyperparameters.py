"""Constructor arguments as primitives, so that a checkpoint that is read safely holds them.

    written(value) is made of None, bool, int, float, str, list and dict, and says what `value` was

A symmetry is its arguments, a class or a `functools.partial` of one is {"class_path": .., "init_args": ..} as in a
configuration file, and an object that nothing can be said of is a note that whoever reads it must give it again.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lightning_equiv.groups.notation import as_representation
from lightning_equiv.groups.representation import Representation
from lightning_equiv.groups.symmetry import Symmetry

_NOTE = " (an object, not in the checkpoint)"


def save_arguments(module: L.LightningModule, frame: types.FrameType | None) -> None:
    """`save_hyperparameters` for constructors that take objects: the arguments of the most derived class.

    Args:
        module: whose arguments.
        frame: of the constructor that calls this.
    """
    probe = _CommandLine()
    probe.save_hyperparameters()
    if probe.hparams:  # a configuration file made this module, and says how to make it again
        module.save_hyperparameters()
        return
    arguments: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, keywords, values = inspect.getargvalues(frame)
        if values[names[0]] is not module:
            break
        arguments = {name: values[name] for name in names[1:]} | (values[keywords] if keywords else {})
        frame = frame.f_back
    module.save_hyperparameters({name: written(value) for name, value in arguments.items()})


@dataclass
class _CommandLine(HyperparametersMixin):
    """Its hyper-parameters are what a configuration file says of the module that is being made, else nothing."""


def written(value: Any) -> Any:
    """What a checkpoint holds of an argument."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): written(item) for key, item in value.items()}
    if isinstance(value, Symmetry):
        spec = {key: _written_spec(getattr(value, key)) for key in ("inputs", "outputs", "batch")}
        return {"group": str(value.group), **spec, "index": value.index}
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        return {**written(value.func), "init_args": {key: written(item) for key, item in value.keywords.items()}}
    if isinstance(value, type) and "<" not in value.__qualname__:
        return {"class_path": f"{value.__module__}.{value.__qualname__}"}
    return f"{type(value).__name__}{_NOTE}"


def _written_spec(spec: Any) -> Any:
    """A spec with every leaf a string; a note where a leaf is a callable."""
    if isinstance(spec, Representation):
        try:
            return repr(as_representation(repr(spec)))
        except ValueError:
            return f"{spec!r}{_NOTE}"
    if isinstance(spec, Mapping):
        return {key: _written_spec(value) for key, value in spec.items()}
    return spec if spec is None else [_written_spec(value) for value in spec]


def factory(value: Any) -> Any:
    """The callable that {"class_path": .., "init_args": ..} stands for; a callable is passed through.

    Examples:
        >>> import torch
        >>> written(functools.partial(torch.optim.SGD, lr=0.1))
        {'class_path': 'torch.optim.sgd.SGD', 'init_args': {'lr': 0.1}}
        >>> factory({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}).func.__name__
        'SGD'
    """
    if not isinstance(value, Mapping):
        return value
    place, _, name = value["class_path"].rpartition(".")
    return functools.partial(getattr(importlib.import_module(place), name), **value.get("init_args", {}))


def is_note(value: Any) -> bool:
    """Whether this stands, somewhere in it, for an object that a checkpoint does not hold."""
    return isinstance(value, str | Mapping | list) and _NOTE in str(value)


def check_given(owner: type, **arguments: Any) -> None:
    """Refuse notes in place of objects.

    Raises:
        ValueError: an argument came from a checkpoint, which does not hold it.
    """
    for name, value in arguments.items():
        if is_note(value):
            raise ValueError(
                f"{owner.__name__} expected {name!r} to be given again, got from the checkpoint only {value!r}: write "
                f"{owner.__name__}.load_from_checkpoint(path, {name}=...)"
            )
