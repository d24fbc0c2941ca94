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
Visit = Callable[[str, Representation, Tensor], Any]

BOOKKEEPING = ("batch", "ptr", "edge_index")


def as_spec(spec: Spec) -> Spec:
    """`spec` with every leaf a `Representation`; lists become tuples, dicts are copied, None stays."""
    if isinstance(spec, Mapping):
        return {key: as_spec(value) for key, value in spec.items()}
    if isinstance(spec, tuple | list) and not isinstance(spec, o3.Irreps | o3.Irrep):  # which are tuples
        return tuple(as_spec(value) for value in spec)
    return None if spec is None else as_representation(spec)


def leaves(spec: Spec) -> Iterator[Representation]:
    """Every representation of a spec."""
    if isinstance(spec, Representation):
        yield spec
    elif spec is not None:
        for value in spec.values() if isinstance(spec, Mapping) else spec:
            yield from leaves(value)


def is_graph(tree: Tree) -> bool:
    """Whether `tree` is a PyG Data or Batch, told by what it offers, without importing PyG."""
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


def map_tree(visit: Visit, spec: Spec, tree: Tree, path: str = "", what: str = "inputs") -> Tree:
    """`tree` with every tensor x replaced by visit(path, representation, x).

    Args:
        visit: called once for every tensor.
        spec: mirrors `tree`.
        tree: tensors in containers; anything else in it is passed on.
        path: dotted name of `tree`, for messages.
        what: which argument of Symmetry the spec is, for messages.

    Raises:
        ValueError: the spec does not mirror the tree; the tensor is named.
    """
    if isinstance(tree, Tensor):
        if isinstance(spec, Representation):
            return visit(path, spec, tree)
        raise ValueError(undeclared(path, tree, what) if spec is None else _mismatch(path, spec, tree, what))
    held = children(tree)
    if held is None:
        if isinstance(spec, Representation) and hasattr(tree, "__array__"):  # numpy's would pass as invariant
            raise ValueError(_mismatch(path, spec, tree, what))
        return tree
    if spec is None:
        spec = {}
    elif isinstance(spec, tuple) and isinstance(tree, tuple | list) and len(spec) <= len(tree):
        spec = dict(enumerate(spec))
    elif not isinstance(spec, Mapping) or isinstance(tree, tuple | list):
        raise ValueError(_mismatch(path, spec, tree, what))
    if unknown := [key for key in spec if key not in held]:
        near = difflib.get_close_matches(str(unknown[0]), [str(k) for k in held], n=2)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise ValueError(
            f"`{what}` names {join(path, unknown[0])!r}{hint}, but what was passed holds only {sorted(map(str, held))}"
        )
    new = {}
    for key, value in held.items():
        rule = spec.get(key)
        if rule is None and is_graph(tree) and key in BOOKKEEPING:
            new[key] = value
        else:
            new[key] = map_tree(visit, rule, value, join(path, key), what)
    return rebuild(tree, new)


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """`tree` with every tensor x replaced by function(x), whatever a spec says."""
    if isinstance(tree, Tensor):
        return function(tree)
    held = children(tree)
    return tree if held is None else rebuild(tree, {key: map_tensors(function, value) for key, value in held.items()})


def tensors(tree: Tree, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its dotted name."""
    if isinstance(tree, Tensor):
        yield path, tree
    for key, value in (children(tree) or {}).items():
        yield from tensors(value, join(path, key))


def leaf_pairs(spec: Spec, left: Tree, right: Tree) -> list[tuple[Tensor, Tensor]]:
    """The tensors of two trees that one spec mirrors, side by side; what is shared by a whole call is left out."""
    found: list[list[Tensor]] = []

    def collect(_: str, representation: Representation, x: Tensor) -> None:
        if not representation.shared:
            found[-1].append(x)

    for tree in (left, right):
        found.append([])
        map_tree(collect, spec, tree, what="outputs")
    return list(zip(*found, strict=True))


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


def undeclared(path: str, x: Tensor, what: str) -> str:
    """Message for a tensor that no spec names."""
    name = path or "the tensor"
    return (
        f"{name!r} (shape {tuple(x.shape)}, {x.dtype}) is not named by the symmetry's `{what}`: "
        "say how a group element moves it, e.g. '1o' for vectors, Point() for positions, Invariant() if nothing does"
    )


def _mismatch(path: str, spec: Spec, tree: Tree, what: str) -> str:
    place = path or "the top"
    return (
        f"`{what}` does not mirror what was passed at {place!r}: expected something like {spec!r}, got {describe(tree)}"
    )
