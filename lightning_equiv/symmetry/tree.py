"""Nested containers of tensors: dicts, tuples, lists, named tuples, dataclasses and PyG graphs.

A *spec* is a tree of representations that mirrors a tree of tensors. Every tensor must be named by the spec: one that
is not is an error, because a forgotten tensor (a unit cell, say) would pass as invariant.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.representations.representation import Representation, as_representation
from lightning_equiv.symmetry.unread import Unread

Tree = Any
Spec = Any
# Where something is in a batch. A callable stands last: jsonargparse takes anything for one.
Place = str | int | Sequence[str | int] | Callable[[Any], Any]
Places = Mapping[str, Place] | Place  # for each name, or one
Rebuild = Callable[[Iterator[Tensor]], Tree]
Undeclared = Callable[[str], Representation | None]
Found = list[tuple[str, Representation, Tensor]]

BOOKKEEPING = ("batch", "ptr", "edge_index")
REST = "*"  # all that a dict of specs does not name


def as_spec(spec: Spec) -> Spec:
    """`spec` with every leaf a `Representation`; lists become tuples, dicts are copied, None stays."""
    if isinstance(spec, Mapping):
        read = {key: as_spec(value) for key, value in spec.items()}
        if REST in read and not getattr(read[REST], "ignored", False):
            raise ValueError(f"{REST!r} is the rest, of which nothing is known: expected Ignored(), got {read[REST]!r}")
        return read
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
    """Whether `tree` is a PyG Data or Batch, recognised by what it offers, without importing PyG.

    HeteroData is none: asked for what it does not hold, it makes it.
    """
    offers = all(hasattr(type(tree), name) for name in ("keys", "stores", "num_nodes"))  # num_nodes itself may warn
    return offers and not hasattr(type(tree), "node_types")


def children(tree: Tree) -> dict[Any, Tree] | None:
    """What a container holds, by key, field or position; None for anything that is no container."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple | list):
        return dict(enumerate(tree))
    if is_graph(tree):
        return {key: tree[key] for key in sorted(tree.keys())}  # PyG's order is that of a set
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


def flatten(name: str, spec: Spec, tree: Tree, undeclared: Undeclared = lambda path: None) -> tuple[Found, Rebuild]:
    """The tensors of a tree with their dotted names and representations, and how to put others in their places.

    Args:
        name: of the spec, for messages: "inputs", "outputs" or "batch".
        spec: mirrors `tree`.
        tree: tensors in containers; anything else in it is passed on.
        undeclared: what is known of a tensor that the spec does not name, by its dotted name; None is nothing.

    What a PyG graph carries beside the inputs (labels) may lie there as long as the network does not read it.

    Raises:
        ValueError: the spec does not mirror the tree, or tensors are not named; all of these are listed.
    """
    found: Found = []
    missing: list[tuple[str, Tensor]] = []

    def walk(path: str, spec: Spec, tree: Tree) -> Rebuild:
        if isinstance(spec, Representation) and spec.ignored:
            return lambda tensors: tree
        if isinstance(tree, Tensor):
            representation = undeclared(path) if spec is None else spec
            if representation is None:
                missing.append((path, tree))
                return next
            if not isinstance(representation, Representation):
                raise ValueError(_mismatch(name, path, spec, tree))
            found.append((path, representation, tree))
            return next
        held = children(tree)
        if held is None:
            if isinstance(spec, Representation) and hasattr(tree, "__array__"):  # numpy's would pass as invariant
                raise ValueError(_mismatch(name, path, spec, tree))
            if not (isinstance(spec, Representation) and spec.shared) and hides_tensors(tree):
                raise ValueError(_hidden(name, path, tree))
            return lambda tensors: tree
        rules = _rules(name, path, spec, tree, held)
        graph, walks, unread = is_graph(tree), {}, {}
        for key, value in held.items():
            place = join(path, key)
            if graph and rules.get(key) is None and name == "inputs" and undeclared(place) is None:
                if key not in BOOKKEEPING and next(tensors(value), None) is not None:
                    unread[key] = Unread(_not_named(name, list(tensors(value, place))))
            elif rules.get(key) is not None or not (graph and key in BOOKKEEPING):
                walks[key] = walk(place, rules.get(key), value)
        held = {**held, **unread}
        return lambda tensors: rebuild(tree, {**held, **{key: again(tensors) for key, again in walks.items()}})

    put = walk("", spec, tree)
    if missing:
        raise ValueError(_not_named(name, missing))
    return found, put


def _rules(name: str, path: str, spec: Spec, tree: Tree, held: dict[Any, Tree]) -> dict[Any, Spec]:
    """The spec of a container by its keys."""
    if spec is None:
        return {}
    if isinstance(spec, tuple) and isinstance(tree, tuple | list) and len(spec) <= len(tree):
        return dict(enumerate(spec))
    if not isinstance(spec, Mapping) or isinstance(tree, tuple | list):
        raise ValueError(_mismatch(name, path, spec, tree))
    if unknown := [key for key, rule in spec.items() if key not in held and not getattr(rule, "ignored", False)]:
        near = difflib.get_close_matches(str(unknown[0]), [str(k) for k in held], n=2)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise ValueError(
            f"`{name}` names {join(path, unknown[0])!r}{hint}, but what was passed holds only {sorted(map(str, held))}"
        )
    return {**dict.fromkeys(held, spec.get(REST)), **spec}


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


def replaced(tree: Tree, place: str, value: Any, path: str = "") -> Tree:
    """A copy of `tree` with `value` at the dotted name `place`."""
    held = children(tree)
    if held is None:
        return value if path == place else tree
    on_the_way = {key: inner for key, inner in held.items() if f"{place}.".startswith(f"{join(path, key)}.")}
    new = {key: replaced(inner, place, value, join(path, key)) for key, inner in on_the_way.items()}
    return rebuild(tree, {**held, **new})


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a tree that is no container, with its dotted name."""
    held = children(tree)
    if held is None:
        yield path, tree
    else:
        for key, value in held.items():
            yield from leaves(value, join(path, key))


def tensors(tree: Tree, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its dotted name."""
    return ((path, x) for path, x in leaves(tree, path) if isinstance(x, Tensor))


def hides_tensors(value: object, depth: int = 3) -> bool:
    """Whether what is no container holds tensors all the same, in attributes or as a set; networks and types may."""
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, nn.Module | type) or inspect.isroutine(value) or inspect.ismodule(value):
        return False
    held = children(value)
    if held is None and not isinstance(value, set | frozenset | deque):
        slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
        held = {**getattr(value, "__dict__", {}), **{name: getattr(value, name, None) for name in slots}}
    inside = value if held is None else held.values()
    return any(hides_tensors(item, depth - 1) for item in inside)  # type: ignore[attr-defined]


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


def held_at(batch: Tree, places: Places, what: str = "target") -> Tree:
    """What lies at a place of a batch; of a dict of places, a dict of what lies there.

    Examples:
        >>> batch = {"x": [1.0, 2.0], "labels": {"y": 3.0}}
        >>> held_at(batch, "labels.y"), held_at(batch, {"energy": ["labels", "y"], "forces": lambda b: -b["x"][1]})
        (3.0, {'energy': 3.0, 'forces': -2.0})

    Raises:
        ValueError: nothing lies there; what does is named.
    """
    if isinstance(places, Mapping):
        return {name: held_at(batch, place, what) for name, place in places.items()}
    return places(batch) if callable(places) else lookup(batch, places, what)


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


def _not_named(name: str, missing: list[tuple[str, Tensor]]) -> str:
    listed = [f"{path or 'the tensor'!r} (shape {tuple(x.shape)}, {x.dtype})" for path, x in missing]
    whole = any(x.dtype == torch.long for _, x in missing)
    numbers = ", NodeIndex() for numbers of nodes such as edges, Pointer() for where graphs begin" if whole else ""
    return (
        f"{', '.join(listed)} {'is' if len(missing) == 1 else 'are'} not named by the symmetry's `{name}`: "
        f"say how a group element moves it, e.g. '1o' for vectors, Point() for positions{numbers}, Invariant() if "
        "nothing does"
    )


def _hidden(name: str, path: str, tree: Tree) -> str:
    return (
        f"{path or 'the only argument'!r} in `{name}` is a {type(tree).__name__} that holds tensors, which cannot be "
        "moved there: pass them in a dict, a tuple, a dataclass or a PyG Data, or write Invariant(shared=True) if "
        "nothing moves what it holds" + (", Ignored() if nobody looks at it" if name == "outputs" else "")
    )


def _mismatch(name: str, path: str, spec: Spec, tree: Tree) -> str:
    place = path or "the top"
    return (
        f"`{name}` does not mirror what was passed at {place!r}: expected something like {spec!r}, got {describe(tree)}"
    )
