"""Choose layers of a model, and find what family each is of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from lightning_equiv.layers.families import FAMILIES
from lightning_equiv.layers.hidden_parameters import CONTAINER
from lightning_equiv.layers.layer import Block, Layer, LayerFamily
from lightning_equiv.representations.representation import as_representation

Chooser = str | type | Callable[[str, nn.Module], bool]
# Callables stand last: jsonargparse takes anything for one when it writes a configuration
Layers = Mapping[str, tuple[Any, Any] | LayerFamily] | Sequence[Chooser] | Chooser


def find_layers(module: nn.Module, layers: Layers, families: Sequence[LayerFamily] = ()) -> list[Layer]:
    """The layers that are meant, in the model's order.

    Args:
        module: the model.
        layers: a glob on dotted names (`net.layers.*.update`), a type, a predicate (name, module) -> bool, a list of
            these, or a dict from globs to (input representation, output representation) or to a `LayerFamily`. In a
            glob `*` stands for anything within one level, `**` for any number of levels. What lies inside a composite
            (`LayerFamily.composite`) is taken neither by a type nor by `**`, but by a predicate, and by a glob that
            names every level from the composite on.
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
    composites = [name for name, m in named.items() if any(f.composite(m) for f in (*families, *FAMILIES))]
    chosen: dict[str, Layer] = {}
    for chooser in choosers:
        matches = [name for name, m in named.items() if _matches(chooser, name, m)]
        parts = {name: outer for name in matches if (outer := _inside(composites, name))}
        inner = {name: outer for name, outer in parts.items() if _passes_by(chooser, name, outer)}
        if matches and len(inner) == len(matches):
            name, outer = next(iter(inner.items()))
            raise ValueError(
                f"layers={chooser!r} matches only parts of composite layers, such as {name!r} in {outer!r} "
                f"({type(named[outer]).__name__}): choose the composite, or name its part by all levels from "
                f"{outer.rpartition('.')[2]!r} on, layers={name!r}"
            )
        matches = [name for name in matches if name not in inner]
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


def find_blocks(network: nn.Module, families: Sequence[LayerFamily] = ()) -> dict[nn.Parameter, list[Block]]:
    """The matrices in the parameters of a network, `LayerFamily.blocks`; no entry for a parameter that has none.

    Raises:
        ValueError: no parameter has any; one is smaller than its blocks.
    """
    found: dict[nn.Parameter, list[Block]] = {}
    for path, module in network.named_modules():
        family = family_of(module, families)
        for name, p in module.named_parameters(recurse=False):
            blocks = family.blocks(module, name, p.shape)
            if blocks and max(b.start + b.rows * b.columns for b in blocks) > p.numel():
                raise ValueError(
                    f"expected parameter {name!r} of {path!r} ({type(module).__name__}) to hold {blocks}, got a shape "
                    f"{tuple(p.shape)}: parameters that are sharded (FSDP, DeepSpeed) are not supported, take DDP"
                )
            if blocks:
                found.setdefault(p, blocks)
    if not found:
        raise ValueError(f"expected a network with matrices, got none in {type(network).__name__}")
    return found


def _given(value: Any) -> Any:
    """A dict's value, with representations made of what they are written as."""
    return value if isinstance(value, LayerFamily) else tuple(map(as_representation, value))


def _matches(chooser: Any, name: str, module: nn.Module) -> bool:
    if isinstance(chooser, str):
        return re.fullmatch(_expression(chooser), name) is not None
    if isinstance(chooser, type):
        return isinstance(module, chooser)
    if callable(chooser):
        return bool(chooser(name, module))
    raise TypeError(f"expected layers as a glob, a type, a predicate (name, module) -> bool or a list, got {chooser!r}")


@cache
def _expression(glob: str) -> str:
    """A glob on dotted names as a regular expression.

    Examples:
        >>> [bool(re.fullmatch(_expression(glob), "net.0.act.tp")) for glob in ("net.*.tp", "net.**.tp", "**.t[pq]")]
        [False, True, True]
    """
    words = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    parts = re.split(r"(\*\*\.|\*\*|\*|\?|\[[^]]+\])", glob)
    return "".join(
        words.get(part) or (part.replace("[!", "[^", 1) if part[:1] == "[" and part[-1:] == "]" else re.escape(part))
        for part in parts
    )


def _inside(composites: Sequence[str], name: str) -> str | None:
    """The outermost composite that a layer is a part of."""
    return next((outer for outer in composites if name.startswith(f"{outer}.")), None)


def _passes_by(chooser: Any, name: str, outer: str) -> bool:
    """Whether a chooser that matches a part of a composite does not mean it."""
    if not isinstance(chooser, str):
        return isinstance(chooser, type)
    *_, named = chooser.split("**")
    levels = name.count(".") - outer.count(".") + 1  # from the composite's own on
    return named != chooser and len(named.strip(".").split(".")) < levels


def _nothing_matched(chooser: Any, named: Mapping[str, nn.Module], module: nn.Module) -> str:
    if isinstance(chooser, str):
        deeper = [name for name in named if _matches(chooser.replace("*", "**"), name, module)]
        if deeper and "**" not in chooser:
            return (
                f"layers={chooser!r} matches nothing in {type(module).__name__}: '*' is one level and '**' any number: "
                f"layers={chooser.replace('*', '**')!r} matches {deeper[:3]}"
            )
        near = difflib.get_close_matches(chooser, named, n=3, cutoff=0.3) or list(named)[:5]
        return f"layers={chooser!r} matches no layer of {type(module).__name__}: the nearest names are {near}"
    types = sorted({type(m).__name__ for m in named.values()})
    return f"layers={chooser!r} matches no layer of {type(module).__name__}: its layers are of types {types}"
