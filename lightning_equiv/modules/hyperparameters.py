"""Constructor arguments as primitives, so that a checkpoint that is read safely holds them.

    written(value) is made of None, bool, int, float, str, list and dict, and says what `value` was

A symmetry is its arguments, a class or a `functools.partial` of one is {"class_path": .., "init_args": ..} as in a
configuration file, and an object that nothing can be said of is a note that whoever reads it must give it again.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import lightning as L
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lightning_equiv.representations.representation import Representation, as_representation
from lightning_equiv.symmetry.symmetry import Symmetry

_NOTE = " (an object, not in the checkpoint)"


class RemembersArguments:
    """Remembers what its constructor was called with; a base before `LightningModule`.

    Read off the call, not off the constructors' frames: what they do with their arguments does not matter.

    Raises:
        ValueError: an argument comes from a checkpoint, which does not hold it; before any constructor sees it.
    """

    may_be_lost: tuple[str, ...] = ()  # arguments without which a module from a checkpoint is made all the same

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__new__(cls)
        module.__dict__["_arguments"] = arguments = _by_name(cls, args, kwargs)
        for name, value in arguments.items():
            if is_note(value) and name not in cls.may_be_lost:
                raise ValueError(
                    f"{cls.__name__} expected {name!r} to be given again, got from the checkpoint only {value!r}: "
                    f"write {cls.__name__}.load_from_checkpoint(path, {name}=...)"
                )
        return module


def save_arguments(module: L.LightningModule, classes: tuple[str, ...]) -> None:
    """`save_hyperparameters` for a constructor that takes objects.

    Args:
        module: one that remembers its arguments.
        classes: names of arguments that are classes, or partials of them, which `factory` makes again.
    """
    arguments = module.__dict__.pop("_arguments")
    probe = _CommandLine()
    probe.save_hyperparameters()
    if probe.hparams:  # a configuration file made this module, and says how to make it again
        module.save_hyperparameters()
        return
    notes = {key: (described if key in classes else written)(value) for key, value in arguments.items()}
    # not by `save_hyperparameters`, which compares what it is given with every argument, arrays too
    owner: Any = module
    owner._set_hparams(notes)
    owner._hparams_initial, owner._hparams_name = copy.deepcopy(owner._hparams), "kwargs"
    owner._log_hyperparams = True


def _by_name(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a constructor is called with, and its defaults."""
    own = [base.__dict__["__init__"] for base in cls.__mro__ if "__init__" in base.__dict__]
    signatures = [inspect.signature(constructor) for constructor in own]
    # one with *args passes on what it does not name: the next one in line does
    signature = next(s for s in signatures if all(p.kind is not p.VAR_POSITIONAL for p in s.parameters.values()))
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # a copy, which is made without arguments; or a mistake, which the constructor names
        return {}
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        arguments |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return arguments


@dataclass
class _CommandLine(HyperparametersMixin):
    """Its hyper-parameters are what a configuration file says of the module that is being made, else nothing."""


def written(value: Any) -> Any:
    """What a checkpoint holds of an argument."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):  # numpy's numbers and enums of strings are read from no checkpoint
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): written(item) for key, item in value.items()}
    if isinstance(value, Symmetry):
        spec = {key: _written_spec(getattr(value, key)) for key in ("inputs", "outputs", "batch")}
        return {"group": str(value.group), **spec, "index": value.index}
    return f"{type(value).__name__}{_NOTE}"


def described(value: Any) -> Any:
    """What a checkpoint holds of a class, or of a `functools.partial` of one."""
    if isinstance(value, functools.partial) and not value.args:
        inner = described(value.func)
        return {**inner, "init_args": written(value.keywords)} if isinstance(inner, dict) else inner
    if isinstance(value, type) and value.__qualname__.isidentifier():  # one that can be imported by its name
        return {"class_path": f"{value.__module__}.{value.__qualname__}"}
    return written(value)


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


def factory(name: str, value: Any, base: type) -> Any:
    """The callable that {"class_path": .., "init_args": ..} stands for; a callable and None are passed through.

    Args:
        name: of the argument, for the message.
        value: callable or description.
        base: what a described class derives from; a checkpoint may have brought its name.

    Raises:
        ValueError: neither.

    Examples:
        >>> import torch
        >>> described(functools.partial(torch.optim.SGD, lr=0.1))
        {'class_path': 'torch.optim.sgd.SGD', 'init_args': {'lr': 0.1}}
        >>> described = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
        >>> factory("optimizer", described, torch.optim.Optimizer).func.__name__
        'SGD'
    """
    if value is None or callable(value):
        return value
    if isinstance(value, Mapping) and {"class_path"} <= set(value) <= {"class_path", "init_args"}:
        place, _, attribute = str(value["class_path"]).rpartition(".")
        with suppress(ImportError, AttributeError, ValueError):
            made = getattr(importlib.import_module(place), attribute)
            if isinstance(made, type) and issubclass(made, base):
                return functools.partial(made, **(value.get("init_args") or {}))
    raise ValueError(
        f"expected {name} to be a callable, or the description of a class that is derived from {base.__name__}, "
        f"{{'class_path': 'package.Class', 'init_args': {{..}}}}, got {value!r}"
    )


def is_note(value: Any) -> bool:
    """Whether this stands, somewhere in it, for an object that a checkpoint does not hold."""
    return isinstance(value, str | Mapping | list) and _NOTE in str(value)
