"""The arguments of a call as the one tree that `inputs` mirrors, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning_equiv.symmetry.tree import Spec, Tree, children, describe, fits

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def pack(
    spec: Spec, network: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tree, Callable[[Tree], Arguments]]:
    """A call's arguments as one tree that `spec` mirrors, and the way back to (args, kwargs).

    Args:
        spec: a tuple goes by position, a dict by name, or position where a key is a whole number; or it mirrors the
            only argument.
        network: whose signature matches positions with names; needed only where call and spec differ in that.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        ValueError: a position or name that is not known, or a dict that can be read in two ways.
    """
    n, keywords = len(args), list(kwargs)
    if isinstance(spec, Mapping):
        names = _names(network, args)
        if any(isinstance(key, int) for key in spec):
            names = [key if key in spec else name for key, name in enumerate([*names, *range(len(names), n)])]
        passed = [*args, *kwargs.values()]
        by_name = dict(zip([*names, *keywords], passed, strict=True)) if len(names) == n else None
        only = passed[0] if len(passed) == 1 and children(passed[0]) is not None else None
        if _is_only_argument(spec, only, by_name):
            return only, lambda tree: ((tree,), {}) if n else ((), {keywords[0]: tree})
        if by_name is None:
            raise ValueError(
                f"`inputs` goes by name ({', '.join(map(str, spec))}) but the network was called with {n} "
                "arguments by position whose names are unknown: write `inputs` as a tuple"
            )
        absent = dict.fromkeys(spec) if any(isinstance(key, int) for key in spec) else {}  # what is called both ways
        return {**absent, **by_name}, lambda tree: (tuple(tree[k] for k in names), {k: tree[k] for k in keywords})
    places = [_position(network, key, n) for key in keywords]
    flat = list(args) + [None] * (max(places, default=n - 1) + 1 - n)
    for place, key in zip(places, keywords, strict=True):
        flat[place] = kwargs[key]
    return tuple(flat), lambda tree: (tuple(tree[:n]), {k: tree[p] for k, p in zip(keywords, places, strict=True)})


def _is_only_argument(spec: Mapping[Any, Spec], only: Tree | None, by_name: dict[str, Any] | None) -> bool:
    """Whether a dict of specs mirrors the only argument, and not the arguments by their names."""
    held = None if only is None else children(only)
    if held is None:
        return False
    named = by_name is not None and set(spec) <= set(by_name)
    mirrors = set(spec) <= set(held)
    if named and mirrors and spec:
        named, mirrors = fits(spec, by_name), fits(spec, only)
        if named and mirrors:
            keys = ", ".join(map(repr, spec))
            raise ValueError(
                f"`inputs` = {{{keys}: ...}} can be read in two ways: {keys} as the network's argument, or as what the "
                f"only argument, {describe(only)}, holds. Write a tuple for the first, inputs=(spec of the argument,), "
                "or name the argument for the second, inputs={argument: {...}}"
            )
    return mirrors or not named


def call_signature(network: Callable[..., Any] | None) -> inspect.Signature | None:
    """What a network is called with, self left out; None where that cannot be known.

    A wrapper whose `forward` takes whatever comes says it by its attribute `__signature__`, as functions do.
    """
    network = getattr(network, "_orig_mod", network)  # a compiled module hides its signature
    if network is None:
        return None
    if isinstance(said := getattr(network, "__signature__", None), inspect.Signature):
        return said
    try:
        return inspect.signature(getattr(network, "forward", network))
    except (TypeError, ValueError):  # built-in and scripted functions
        return None


def parameters(network: Callable[..., Any] | None) -> list[str]:
    """The names of what a network takes; none where its signature is not known."""
    signature = call_signature(network)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [] if signature is None else [name for name, p in signature.parameters.items() if p.kind not in variable]


def _names(network: Callable[..., Any] | None, args: tuple[Any, ...]) -> list[Any]:
    """The names of positional arguments, as far as they have any."""
    signature = call_signature(network)
    if signature is None:
        return []
    try:
        bound = signature.bind_partial(*args).arguments
    except TypeError as error:
        raise ValueError(f"the network cannot be called with {len(args)} arguments by position: {error}") from None
    return [name for name in bound if signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL]


def _position(network: Callable[..., Any] | None, key: str, n: int) -> int:
    """The place of a keyword argument among the positional ones, behind the first n."""
    signature = call_signature(network)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [] if signature is None else [p.name for p in signature.parameters.values() if p.kind in kinds]
    if key not in names[n:]:
        raise ValueError(
            f"the network was called with the keyword {key!r} whose position is unknown: "
            f"write `inputs` as a dict of keyword names, e.g. {{{key!r}: ...}}"
        )
    return names.index(key)
