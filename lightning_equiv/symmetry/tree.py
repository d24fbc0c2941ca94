"""Nested containers of tensors: dicts, tuples, lists, named tuples, dataclasses and PyG graphs.

A *spec* is a tree of representations that mirrors a tree of tensors. Every tensor must be named by the spec: one that
is not is an error, because a forgotten tensor (a unit cell, say) would pass as invariant.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from e3nn import o3
from torch import Tensor

from lightning_equiv.representations.representation import Representation, as_representation

Tree = Any
Spec = Any
Rebuild = Callable[[Iterator[Tensor]], Tree]
Undeclared = Callable[[str], Representation | None]

BOOKKEEPING = ("batch", "ptr", "edge_index")


def as_spec(spec: Spec) -> Spec:
    """`spec` with every leaf a `Representation`; lists become tuples, dicts are copied, None stays."""
    if isinstance(spec, Mapping):
        return {key: as_spec(value) for key, value in spec.items()}
    if isinstance(spec, tuple | list) and not isinstance(spec, o3.Irreps | o3.Irrep):  # which are tuples
        return tuple(as_spec(value) for value in spec)
    return None if spec is None else as_representation(spec)


def declared(spec: Spec, path: str = "") -> Iterator[tuple[str, Representation]]:
    """Every representation of a spec with its dotted name."""
    if isinstance(spec, Representation):
        yield path, spec
    elif spec is not None:
        for key, value in spec.items() if isinstance(spec, Mapping) else enumerate(spec):
            yield from declared(value, join(path, key))


def is_graph(tree: Tree) -> bool:
    """Whether `tree` is a PyG Data or Batch, recognised by what it offers, without importing PyG."""
    return all(hasattr(type(tree), name) for name in ("keys", "stores", "num_nodes"))  # num_nodes itself may warn


def children(tree: Tree) -> dict[Any, Tree] | None:
    """What a container holds, by key, field or position; None for anything that is no container."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple | list):
        return dict(enumerate(tree))
    if is_graph(tree):
        return {key: tree[key] for key in tree.keys()}  # noqa: SIM118 (a PyG object is no mapping)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    return None


def rebuild(tree: Tree, new: dict[Any, Tree]) -> Tree:
    """A copy of a container with new contents; the original is left alone."""
    if isinstance(tree, tuple):
        return type(tree)(*new.values()) if hasattr(tree, "_fields") else tuple(new.values())
    if isinstance(tree, list):
        return list(new.values())
    out = copy.copy(tree)
    for key, value in new.items():
        if isinstance(tree, Mapping) or is_graph(tree):
            out[key] = value
        else:
            object.__setattr__(out, key, value)  # a dataclass, which may be frozen or check what it is made of
    return out


def flatten(
    name: str, spec: Spec, tree: Tree, undeclared: Undeclared = lambda path: None
) -> tuple[list[tuple[str, Representation, Tensor]], Rebuild]:
    """The tensors of a tree with their dotted names and representations, and how to put others in their places.

    Args:
        name: of the spec, for messages: "inputs", "outputs" or "batch".
        spec: mirrors `tree`.
        tree: tensors in containers; anything else in it is passed on.
        undeclared: what is known of a tensor that the spec does not name, by its dotted name; None is nothing.

    Raises:
        ValueError: the spec does not mirror the tree; the tensor is named.
    """
    found: list[tuple[str, Representation, Tensor]] = []

    def walk(path: str, spec: Spec, tree: Tree) -> Rebuild:
        if isinstance(tree, Tensor):
            representation = undeclared(path) if spec is None else spec
            if representation is None:
                raise ValueError(_not_named(name, path, tree))
            if not isinstance(representation, Representation):
                raise ValueError(_mismatch(name, path, spec, tree))
            found.append((path, representation, tree))
            return next
        held = children(tree)
        if held is None:
            if isinstance(spec, Representation) and hasattr(tree, "__array__"):  # numpy's would pass as invariant
                raise ValueError(_mismatch(name, path, spec, tree))
            return lambda tensors: tree
        rules = _rules(name, path, spec, tree, held)
        skipped = BOOKKEEPING if is_graph(tree) else ()
        walks = {
            key: walk(join(path, key), rules.get(key), value)
            for key, value in held.items()
            if rules.get(key) is not None or key not in skipped
        }
        return lambda tensors: rebuild(tree, {**held, **{key: again(tensors) for key, again in walks.items()}})

    return found, walk("", spec, tree)


def _rules(name: str, path: str, spec: Spec, tree: Tree, held: dict[Any, Tree]) -> dict[Any, Spec]:
    """The spec of a container by its keys."""
    if spec is None:
        return {}
    if isinstance(spec, tuple) and isinstance(tree, tuple | list) and len(spec) <= len(tree):
        return dict(enumerate(spec))
    if not isinstance(spec, Mapping) or isinstance(tree, tuple | list):
        raise ValueError(_mismatch(name, path, spec, tree))
    if unknown := [key for key in spec if key not in held]:
        near = difflib.get_close_matches(str(unknown[0]), [str(k) for k in held], n=2)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise ValueError(
            f"`{name}` names {join(path, unknown[0])!r}{hint}, but what was passed holds only {sorted(map(str, held))}"
        )
    return dict(spec)


def fits(spec: Spec, tree: Tree) -> bool:
    """Whether a spec mirrors a tree as far as containers go."""
    held = children(tree)
    if isinstance(spec, Representation):
        return held is None
    if spec is None or held is None:
        return spec is None
    if isinstance(spec, tuple) != isinstance(tree, tuple | list):
        return False
    rules = dict(enumerate(spec)) if isinstance(spec, tuple) else spec
    return all(key in held and fits(rule, held[key]) for key, rule in rules.items())


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """`tree` with every tensor x replaced by function(x), whatever a spec says."""
    if isinstance(tree, Tensor):
        return function(tree)
    held = children(tree)
    return tree if held is None else rebuild(tree, {key: map_tensors(function, value) for key, value in held.items()})


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a tree that is no container, with its dotted name."""
    held = children(tree)
    if held is None:
        yield path, tree
    else:
        for key, value in held.items():
            yield from leaves(value, join(path, key))


def tensors(tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its dotted name."""
    return ((path, x) for path, x in leaves(tree) if isinstance(x, Tensor))


def named(path: str, name: str | int) -> bool:
    """Whether a dotted name is `name`, or ends in it; a position is meant among the arguments only."""
    return path == str(name) or (isinstance(name, str) and path.rpartition(".")[2] == name)


def lookup(tree: Tree, path: Hashable | Sequence[Hashable], what: str = "target") -> Tree:
    """What lies at a key, an index, or a path of these: "y", "labels.y", 1, ["labels", 0].

    Raises:
        ValueError: nothing lies there; what does is named.
    """
    held = children(tree)
    if held is not None and isinstance(path, Hashable) and path in held:
        return held[path]
    keys = path.split(".") if isinstance(path, str) else path if isinstance(path, Sequence) else [path]
    for key in keys:
        held = children(tree)
        if held is None or key not in held:
            there = describe(tree)
            raise ValueError(f"{what}={path!r} is not in the batch: {key!r} was looked for in {there}")
        tree = held[key]
    return tree


def join(path: str, key: object) -> str:
    """Dotted name of a child."""
    return f"{path}.{key}" if path else str(key)


def describe(tree: Tree) -> str:
    """A tree's shape in words, for messages."""
    if isinstance(tree, Tensor):
        return f"a tensor of shape {tuple(tree.shape)}"
    held = children(tree)
    if held is None:
        return f"a {type(tree).__name__}"
    return f"a {type(tree).__name__} of {len(held)}: {', '.join(map(str, held)) or 'nothing'}"


def _not_named(name: str, path: str, x: Tensor) -> str:
    return (
        f"{path or 'the tensor'!r} (shape {tuple(x.shape)}, {x.dtype}) is not named by the symmetry's `{name}`: "
        "say how a group element moves it, e.g. '1o' for vectors, Point() for positions, Invariant() if nothing does"
    )


def _mismatch(name: str, path: str, spec: Spec, tree: Tree) -> str:
    place = path or "the top"
    return (
        f"`{name}` does not mirror what was passed at {place!r}: expected something like {spec!r}, got {describe(tree)}"
    )
