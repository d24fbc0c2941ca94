"""Choose layers of a model, and find what family each is of."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_equiv.layers.families import FAMILIES
from lightning_equiv.layers.hidden_parameters import CONTAINER
from lightning_equiv.layers.layer import Layer, LayerFamily
from lightning_equiv.representations.representation import as_representation

Chooser = str | type | Callable[[str, nn.Module], bool]
Layers = Chooser | Sequence[Chooser] | Mapping[str, tuple[Any, Any] | LayerFamily]


def find_layers(module: nn.Module, layers: Layers, families: Sequence[LayerFamily] = ()) -> list[Layer]:
    """The layers that are meant, in the model's order.

    Args:
        module: the model.
        layers: a glob on dotted names ("net.layers.*.update"), a type, a predicate (name, module) -> bool, a list of
            these, or a dict from globs to (input representation, output representation) or to a `LayerFamily`.
        families: asked before the built-in ones which of the layers are theirs.

    Raises:
        TypeError: `layers` or `families` are something else.
        ValueError: a glob, type or predicate matches nothing (the nearest names are shown), a family none of the
            layers, or a representation is not one.
    """
    if wrong := [family for family in families if not isinstance(family, LayerFamily)]:
        raise TypeError(
            f"expected families such as [VectorNeurons(of=...)], instances of LayerFamily, got {wrong[0]!r}"
        )
    given = {glob: _given(value) for glob, value in layers.items()} if isinstance(layers, Mapping) else {}
    if isinstance(layers, Mapping) or (isinstance(layers, Sequence) and not isinstance(layers, str)):
        choosers: list[Any] = list(layers)
    else:
        choosers = [layers]
    # a compiled module puts a name of its own in between, which is not the user's; nor are the branches of another
    named = {name.replace("_orig_mod.", ""): m for name, m in module.named_modules() if name and CONTAINER not in name}
    chosen: dict[str, Layer] = {}
    for chooser in choosers:
        matches = [name for name, m in named.items() if _matches(chooser, name, m)]
        if not matches:
            raise ValueError(_nothing_matched(chooser, named, module))
        outermost = [name for name in matches if not any(name.startswith(f"{other}.") for other in matches)]
        own = given.get(chooser) if isinstance(chooser, str) else None
        for name in outermost:  # what lies inside a chosen layer is part of it
            if isinstance(own, LayerFamily):
                chosen[name] = own.describe(name, named[name])
            else:
                chosen[name] = family_of(named[name], families).describe(name, named[name], own)
    for family in families:
        if not any(family.matches(layer.module) for layer in chosen.values()):
            types = sorted({type(layer.module).__name__ for layer in chosen.values()})
            raise ValueError(f"families: {family!r} matches none of the chosen layers, which are of types {types}")
    return [chosen[name] for name in named if name in chosen]


def family_of(module: nn.Module, families: Sequence[LayerFamily] = ()) -> LayerFamily:
    """The family of a module: the first that matches, of `families` and then of the built-in ones."""
    return next(family for family in (*families, *FAMILIES) if family.matches(module))


def _given(value: Any) -> Any:
    """A dict's value, with representations made of what they are written as."""
    return value if isinstance(value, LayerFamily) else tuple(map(as_representation, value))


def _matches(chooser: Any, name: str, module: nn.Module) -> bool:
    if isinstance(chooser, str):
        return fnmatch.fnmatchcase(name, chooser)
    if isinstance(chooser, type):
        return isinstance(module, chooser)
    if callable(chooser):
        return bool(chooser(name, module))
    raise TypeError(f"expected layers as a glob, a type, a predicate (name, module) -> bool or a list, got {chooser!r}")


def _nothing_matched(chooser: Any, named: Mapping[str, nn.Module], module: nn.Module) -> str:
    if isinstance(chooser, str):
        near = difflib.get_close_matches(chooser, named, n=3, cutoff=0.3) or list(named)[:5]
        return f"layers={chooser!r} matches no layer of {type(module).__name__}: the nearest names are {near}"
    types = sorted({type(m).__name__ for m in named.values()})
    return f"layers={chooser!r} matches no layer of {type(module).__name__}: its layers are of types {types}"
